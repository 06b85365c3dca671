"""ProbeTask: a classification that a probe measures features by; collate(): tensors to a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from d2v_pretrain.types import Batch

Item = TypeVar("Item")


@dataclass(frozen=True)
class Split(Generic[Item]):
    """Labelled items.

    Args:
        read: number of an item in the split -> the item as the dataset stores it, or None if it
            cannot be read.
        labels: integer class of each item.
    """

    read: Callable[[int], Item | None]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Labelled(Generic[Item]):
    """The part of a ``ProbeTask`` that a dataset knows. A transform adds how items are prepared,
    and the raw features to compare with."""

    name: str
    train: Split[Item]
    test: Split[Item]
    classes: int
    note: str
    headline: str = "few_shot"


class FixedBatches(Generic[Item]):
    """The items of a split in order, read and batched anew at each iteration.

    Items that cannot be read are left out.

    Args:
        split: items and labels.
        view: item -> tensor as the encoder takes it, without augmentation.
        fill: value of padding.
        rows: largest number of items in a batch.
        check: called at the end of each iteration with the number of items that could not be read
            and the number of all items; raises a ``ConfigError`` if these are too many.
    """

    def __init__(
        self,
        split: Split[Item],
        view: Callable[[Item], Tensor],
        fill: float = 0,
        rows: int = 64,
        check: Callable[[int, int], None] = lambda bad, total: None,
    ) -> None:
        self.split, self.view, self.fill, self.rows = split, view, fill, rows
        self.check = check

    def __iter__(self) -> Iterator[Batch]:
        bad = 0
        for start in range(0, len(self.split), self.rows):
            ids = range(start, min(start + self.rows, len(self.split)))
            stored = {i: self.split.read(i) for i in ids}
            views = {i: self.view(item) for i, item in stored.items() if item is not None}
            bad += len(stored) - len(views)
            if views:
                found = np.array(list(views))
                labels = torch.from_numpy(self.split.labels[found].astype(np.int64))
                yield collate(list(views.values()), found, self.fill, labels=labels)
        self.check(bad, len(self.split))


def collate(rows: list[Tensor], ids: np.ndarray, fill: float = 0, **fields: object) -> Batch:
    """One batch of tensors that may differ in length along their last axis.

    Args:
        rows: the samples: waveforms (samples,), token ids (tokens,), signals (channels, steps) or
            images (3, height, width).
        ids: the id of each sample.
        fill: value of the padding, which is on the right.
        fields: further fields of ``Batch``.

    Returns:
        The batch; its ``lengths`` is None if all samples have the same length.
    """
    lengths = torch.tensor([row.shape[-1] for row in rows])
    longest = int(lengths.max())
    numbers = torch.from_numpy(np.asarray(ids, np.int64))
    if bool((lengths == longest).all()):
        return Batch(torch.stack(rows), numbers, **fields)  # type: ignore[arg-type]
    # Each row is copied once; torch's padding and stacking would copy it twice.
    inputs = rows[0].new_full((len(rows), *rows[0].shape[:-1], longest), fill)
    for target, row in zip(inputs, rows, strict=True):
        target[..., : row.shape[-1]] = row
    return Batch(inputs, numbers, lengths, **fields)  # type: ignore[arg-type]
