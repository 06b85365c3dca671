"""What a dataset with labels offers to a probe: items split in two, as re-iterable batches, with a
floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from d2v_pretrain.types import Batch

Raw = TypeVar("Raw")


@dataclass(frozen=True)
class Split(Generic[Raw]):
    """Items with classes: ``read(i)`` is item i as the dataset stores it, None if unreadable;
    ``labels`` (N,) ints."""

    read: Callable[[int], Raw | None]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Labelled(Generic[Raw]):
    """What a dataset knows of a probe; the transform of the modality adds the view, the batches and
    the floor."""

    name: str
    train: Split[Raw]
    test: Split[Raw]
    classes: int
    note: str
    headline: str = "few_shot"


class FixedBatches(Generic[Raw]):
    """The items of a split in order, viewed and batched anew at each iteration; unreadable ones are
    left out.

    Args:
        split: items and labels.
        view: item -> tensor as the encoder takes it, without augmentation.
        fill: value of padding.
        rows: largest batch size.
    """

    def __init__(
        self, split: Split[Raw], view: Callable[[Raw], Tensor], fill: float = 0, rows: int = 64
    ) -> None:
        self.split, self.view, self.fill, self.rows = split, view, fill, rows

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.split), self.rows):
            raw = {
                i: self.split.read(i) for i in range(start, min(start + self.rows, len(self.split)))
            }
            items = {i: self.view(item) for i, item in raw.items() if item is not None}
            if items:
                ids = np.array(list(items))
                labels = torch.from_numpy(self.split.labels[ids].astype(np.int64))
                yield collate(list(items.values()), ids, self.fill, labels=labels)


def collate(items: list[Tensor], ids: np.ndarray, fill: float = 0, **fields: object) -> Batch:
    """One batch of tensors that may differ in length along their last axis.

    Args:
        items: B tensors (S,), (T,) or (3, H, W).
        ids: (B,) sample ids.
        fill: value of the padding, put on the right.
        fields: further fields of ``Batch``.

    Returns:
        The batch; ``lengths`` is None where all are equal.
    """
    lengths = torch.tensor([item.shape[-1] for item in items])
    longest = int(lengths.max())
    if bool((lengths == longest).all()):
        return Batch(torch.stack(items), torch.from_numpy(np.asarray(ids, np.int64)), **fields)  # type: ignore[arg-type]
    rows = items[0].new_full((len(items), *items[0].shape[:-1], longest), fill)
    for row, item in zip(
        rows, items
    ):  # each is copied once; padding and stacking them would do it twice
        row[..., : item.shape[-1]] = item
    return Batch(rows, torch.from_numpy(np.asarray(ids, np.int64)), lengths, **fields)  # type: ignore[arg-type]
