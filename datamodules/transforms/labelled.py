"""LabelledTransform: the samples of fine-tuning, labelled training items of a dataset."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.types import ProbeTask
from datamodules.datasets.base import Dataset
from datamodules.datasets.probe_tasks import FixedBatches
from datamodules.transforms.base import Samples, Transform


class LabelledTransform(Samples):
    """Labelled items, cropped or augmented as in pretraining; test items as probes see them.

    Args:
        transform: prepares items of the modality; its dataset has the labels.
        task: name of one of its ``probe_tasks``; None for the first.

    Raises:
        ConfigError: if the data have no labels, or no such task.
    """

    def __init__(self, transform: Transform[Any], task: str | None = None) -> None:
        tasks = {one.name: one for one in transform.probe_tasks()}
        if not tasks:
            remedy = (
                "give labels (class folders, or data.labels=TABLE data.label_column=COLUMN), "
                "or another data="
            )
            raise ConfigError("data", transform.describe(), "has no labels to fine-tune on", remedy)
        if task is not None and task not in tasks:
            rule = "is no classification of this data"
            raise ConfigError("labels", task, rule, f"choose one of {', '.join(tasks)}")
        self.transform, self.fill = transform, transform.fill
        self.task = tasks[next(iter(tasks)) if task is None else task]
        train, test = self.task.train, self.task.test
        assert isinstance(train, FixedBatches) and isinstance(test, FixedBatches)
        self.split, self.test_size, self.classes = train.split, len(test.split), self.task.classes

    @cached_property
    def _readable(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Ids of the items that can be read, and their lengths. Items that all have one size, such
        as images, are not checked."""
        if self.transform.equal_sizes:
            return np.arange(len(self.split)), None
        lengths = {}
        for index in range(len(self.split)):
            if (item := self.split.read(index)) is not None:
                lengths[index] = self.transform.train_view(item, index, 0).shape[-1]
        self.stored.check_share(len(self.split) - len(lengths), len(self.split))
        return np.array(list(lengths), np.int64), np.array(list(lengths.values()), np.int64)

    @property
    def lengths(self) -> np.ndarray | None:
        return self._readable[1]

    @cached_property
    def labels(self) -> np.ndarray:
        return self.split.labels[self._readable[0]].astype(np.int64)

    @property
    def stored(self) -> Dataset[Any]:
        return self.transform.stored

    def __len__(self) -> int:
        return len(self._readable[0])

    def read(self, index: int, epoch: int, longest: int | None = None) -> Tensor | None:
        item = self.split.read(int(self._readable[0][index]))
        return None if item is None else self.transform.train_view(item, index, epoch, longest)

    def placeholder(self, length: int | None) -> Tensor:
        return self.transform.placeholder(length)

    def finish(self, inputs: Tensor) -> Tensor:
        return self.transform.finish(inputs)

    def describe(self) -> str:
        sizes = f"{len(self):,} to train on, {self.test_size:,} to test"
        what = f"labels '{self.task.name}' of {self.transform.describe()}"
        return f"{what}: {sizes}, {self.classes} classes"

    def probe_tasks(self) -> list[ProbeTask]:
        """The classification that is trained, whose test items measure the accuracy."""
        return [self.task]
