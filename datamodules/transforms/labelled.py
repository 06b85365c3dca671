"""LabelledTransform: the labelled training items of a dataset as the transform of a run, seen as
pretraining sees them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.types import ProbeTask


class LabelledTransform:
    """Items with classes: crops and augmentation are those of the transform, tests see what its
    probes see.

    Args:
        transform: of the modality, with ``varied(item, index, epoch)``.
        task: which of its ``probe_tasks`` by name; None for the first.

    Raises:
        ConfigError: the data have no labels, or no such task.
    """

    def __init__(self, transform: Any, task: str | None = None) -> None:
        tasks = {made.name: made for made in transform.probe_tasks()}
        if not tasks:
            remedy = "give labels (class folders, or data.labels=TABLE data.label_column=COLUMN), or another data="
            raise ConfigError("data", transform.describe(), "has no labels to fine-tune on", remedy)
        if task is not None and task not in tasks:
            raise ConfigError(
                "labels",
                task,
                "is no classification of this data",
                f"choose one of {', '.join(tasks)}",
            )
        self.transform, self.task = transform, tasks[next(iter(tasks)) if task is None else task]
        self.split, self.classes, self.fill = (
            self.task.train.split,
            self.task.classes,
            transform.fill,
        )
        if hasattr(transform, "finish"):
            self.finish = transform.finish

    @cached_property
    def _items(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Ids of the items, without those that cannot be read now, and their lengths; images need
        no look."""
        lengths = {}
        for index in range(len(self.split)):
            if (raw := self.split.read(index)) is not None:
                item = self.transform.varied(raw, index, 0)
                if item.ndim > 1:
                    return np.arange(len(self.split)), None
                lengths[index] = len(item)
        return np.array(list(lengths), np.int64), np.array(list(lengths.values()), np.int64)

    @property
    def lengths(self) -> np.ndarray | None:
        """(N,) length of each item as ``read`` returns it; None for images."""
        return self._items[1]

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) int64 classes."""
        return self.split.labels[self._items[0]].astype(np.int64)

    def __len__(self) -> int:
        return len(self._items[0])

    def read(self, index: int, epoch: int) -> Tensor | None:
        """Item ``index`` as the encoder takes it, cropped or augmented for this pass; None if it
        cannot be read."""
        raw = self.split.read(int(self._items[0][index]))
        return None if raw is None else self.transform.varied(raw, index, epoch)

    def placeholder(self, index: int) -> Tensor:
        """Of the planned size."""
        return (
            self.transform.placeholder(0)
            if self.lengths is None
            else torch.full((int(self.lengths[index]),), self.fill)
        )

    def describe(self) -> str:
        """One line for the log."""
        size = f"{len(self):,} to train on, {len(self.task.test.split):,} to test, {self.classes} classes"
        return f"labels '{self.task.name}' of {self.transform.describe()}: {size}"

    def probe_tasks(self) -> list[ProbeTask]:
        """The one that is tested."""
        return [self.task]
