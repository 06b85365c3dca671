"""Samples: what a datamodule reads; Transform: samples of a dataset's items; CropTransform."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import Any, ClassVar, Generic

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.rng import Use, fold_in
from d2v_pretrain.types import Batch, ProbeTask
from datamodules.datasets.base import Dataset, Item, Numbered
from datamodules.datasets.probe_tasks import FixedBatches, Labelled


class Samples(Numbered):
    """Samples of one modality, as the encoder takes them.

    What ``read`` returns is a function of (seed, epoch, index) alone, so that any worker and rank
    reads the same.

    Attributes:
        fill: value of padding.
        crop_to_shortest: whether all rows of a micro-batch are cropped to its shortest sample,
            instead of padded.
        by_length: whether micro-batches are made of samples sorted by length, as the reference's
            are; by default of samples of similar length.
    """

    fill: float = 0.0
    crop_to_shortest: bool = False
    by_length: bool = False

    @property
    def lengths(self) -> np.ndarray | None:
        """The length along the last axis of what ``read`` returns for each sample; None if all are
        equal."""
        return None

    @property
    def labels(self) -> np.ndarray | None:
        """The int64 class of each sample, for fine-tuning; None in pretraining."""
        return None

    @property
    def numbered(self) -> Numbered:
        """What the order of a run takes shards from: the dataset if each item is one sample, else
        self."""
        return self

    @abstractmethod
    def read(self, index: int, epoch: int, longest: int | None = None) -> Tensor | None:
        """Sample ``index`` in this epoch, or None if it cannot be read (reported by the dataset).

        Args:
            longest: largest length of a crop; None for the crop length of the transform.
        """

    @abstractmethod
    def placeholder(self, length: int | None) -> Tensor:
        """The tensor that replaces a sample that cannot be read in a batch.

        Args:
            length: as ``lengths`` has it; None if all samples are equally long.
        """

    def finish(self, inputs: Tensor) -> Tensor:
        """The last step of the preparation, for a batch on the device: inputs as the encoder takes
        them."""
        return inputs

    @abstractmethod
    def describe(self) -> str:
        """The data and their size in one line, for the log."""

    @abstractmethod
    def probe_tasks(self) -> list[ProbeTask]:
        """Classifications of frozen features; [] without labels."""


class Transform(Samples, Generic[Item]):
    """Samples made of the items of a dataset, one of each item unless a subclass says otherwise.

    A new transform needs ``takes``, ``gives``, ``longest_input``, ``train_view``, ``plain_view``
    and ``placeholder``. For signals along time, ``CropTransform`` has the last three.

    Args:
        dataset: the items.

    Attributes:
        takes: the kind of items, as ``Dataset.holds`` names it.
        gives: what samples are, as a stem names it in ``reads``: "waveform", "image", "tokens", or
            a word of your own.
        equal_sizes: whether training views of any two items have the same shape.
        raw_baseline_name: what ``raw_baseline`` computes, for the printed table.

    Raises:
        ConfigError: if the dataset holds items of another kind.
    """

    takes: ClassVar[str]
    gives: ClassVar[str]
    equal_sizes: ClassVar[bool] = False
    raw_baseline_name: ClassVar[str] = "mean + std"

    def __init__(self, dataset: Dataset[Item]) -> None:
        self.check_dataset(type(dataset))
        self.dataset = dataset

    @classmethod
    def check_dataset(cls, dataset: type) -> None:
        """Whether this transform can read such a dataset, from the two classes alone.

        Raises:
            ConfigError: if it cannot.
        """
        if not issubclass(dataset, Dataset):
            rule = "is no dataset: it must be a subclass of datamodules.datasets.base.Dataset"
            raise ConfigError("data", dataset.__name__, rule, "derive it from that class")
        if dataset.holds not in (cls.takes, "array"):
            rule = f"holds items of kind {dataset.holds}, and {cls.__name__} takes {cls.takes}"
            raise ConfigError("data", dataset.__name__, rule, "choose other data or modality")

    @classmethod
    @abstractmethod
    def longest_input(cls, *_: Any, **settings: Any) -> tuple[int, ...]:
        """Shape of the longest sample: (samples,), (3, height, width), (tokens,), (channels, steps)
        ...

        A subclass has the settings that it reads as named arguments.

        Args:
            settings: arguments of the constructor, by name.
        """

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def numbered(self) -> Numbered:
        return self.dataset

    def read(self, index: int, epoch: int, longest: int | None = None) -> Tensor | None:
        item = self.dataset.read(index)
        return None if item is None else self.train_view(item, index, epoch, longest)

    @abstractmethod
    def train_view(self, item: Item, index: int, epoch: int, longest: int | None = None) -> Tensor:
        """What training sees of an item in an epoch: cropped, augmented.

        Args:
            item: as the dataset stores it.
            index: number that the random crop depends on, besides seed and epoch.
            longest: see ``read``.
        """

    @abstractmethod
    def plain_view(self, item: Item) -> Tensor:
        """The whole item, without randomness, as the encoder takes it: for feature extraction."""

    def probe_view(self, item: Item) -> Tensor:
        """What probes see of an item; must not be random."""
        return self.plain_view(item)

    def raw_baseline(self, batch: Batch) -> Tensor:
        """Features (samples, F) that are not learned, for a probe to compare with; here those of
        ``mean_and_std``."""
        return mean_and_std(batch)

    def plain(self) -> Iterator[Tensor | None]:
        """The plain view of every item; None for one that cannot be read."""
        for index in range(len(self.dataset)):
            item = self.dataset.read(index)
            yield None if item is None else self.plain_view(item)

    def describe(self) -> str:
        return self.dataset.describe()

    def probe_tasks(self) -> list[ProbeTask]:
        """The dataset's classifications, compared with ``raw_baseline``."""
        return [self._probe_task(task) for task in self.dataset.labelled()]

    def _probe_task(self, task: Labelled[Item]) -> ProbeTask:
        return ProbeTask(
            name=task.name,
            train=FixedBatches(task.train, self.probe_view, self.fill),
            test=FixedBatches(task.test, self.probe_view, self.fill),
            classes=task.classes,
            raw_baseline=self.raw_baseline,
            raw_baseline_name=self.raw_baseline_name,
            headline=task.headline,
            note=task.note,
        )


class CropTransform(Transform[np.ndarray]):
    """Random crops of normalised signals, items of shape (steps,) or (channels, steps). Items
    shorter than a crop are not cropped.

    An item is normalised before it is cropped, as in fairseq's
    ``RawAudioDataset.postprocess``: a crop has neither zero mean nor unit variance.

    Args:
        dataset: the signals.
        crop: length of the longest sample, in steps of the last axis.
        seed: of the run.
        crop_to_shortest: crop all rows of a micro-batch to the length of its shortest row, so that
            none is padded, as the reference does (fairseq ``RawAudioDataset.collater``).
    """

    def __init__(
        self, dataset: Dataset[np.ndarray], crop: int, seed: int, crop_to_shortest: bool = False
    ) -> None:
        super().__init__(dataset)
        self.crop, self.seed = crop, seed
        self.crop_to_shortest = self.by_length = crop_to_shortest

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.minimum(self.dataset.lengths, self.crop)

    def train_view(
        self, item: np.ndarray, index: int, epoch: int, longest: int | None = None
    ) -> Tensor:
        """A crop, at a place that (seed, epoch, index) decide, of the plain view."""
        crop = self.crop if longest is None else longest
        spare = item.shape[-1] - crop
        if spare <= 0:
            return self.plain_view(item)
        rng = np.random.default_rng(fold_in(self.seed, Use.CROP, epoch, index))
        start = int(rng.integers(spare + 1))
        return self.plain_view(item)[..., start : start + crop]

    def plain_view(self, item: np.ndarray) -> Tensor:
        return normalise(item)

    def placeholder(self, length: int | None) -> Tensor:
        """Zeros, with as many channels as the first item that can be read."""
        items = map(self.dataset.read, range(len(self.dataset)))
        first = next(item for item in items if item is not None)
        return torch.zeros(*first.shape[:-1], self.crop if length is None else length)


def normalise(signal: np.ndarray) -> Tensor:
    """Give a signal (..., steps) zero mean and unit (biased) variance along its last axis, as
    float32; eps is 1e-5.

    For a waveform this is fairseq's ``F.layer_norm`` over the utterance.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(signal, np.float32))
    return layer_norm(tensor, tensor.shape[-1:])


def mean_and_std(batch: Batch) -> Tensor:
    """Mean and standard deviation along the last axis of each input of a batch, without padding.

    Inputs (B, ..., S) give (B, 2F), F the product of the axes between the first and the last.
    """
    x = batch.inputs.flatten(1, -2) if batch.inputs.ndim > 2 else batch.inputs[:, None]
    lengths = torch.full((len(x),), x.shape[-1]) if batch.lengths is None else batch.lengths
    valid = (torch.arange(x.shape[-1]) < lengths[:, None]).to(x)[:, None]
    count = valid.sum(-1)
    mean = (x * valid).sum(-1) / count
    variance = ((x - mean[..., None]).square() * valid).sum(-1) / count
    return torch.cat([mean, variance.sqrt()], 1)
