"""The mask policy protocol, and what the policies share: row lengths, exact counts, padding."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from d2v_pretrain.types import Mask


class MaskPolicy(Protocol):
    """A distribution over masks, as a pure function of its arguments."""

    def __call__(
        self,
        key: int,
        ids: Tensor,
        clones: int,
        grid: tuple[int, ...],
        lengths: Tensor | None = None,
    ) -> Mask:
        """Draw one mask per clone of each sample.

        Args:
            key: randomness, ``fold_in(seed, epoch)``.
            ids: (B,) int64 global sample ids.
            clones: M, masks per sample.
            grid: token grid, ``(T,)`` or ``(rows, columns)``.
            lengths: (B,) int64 number of real tokens, or None if all are.

        Returns:
            Mask of B * M rows; row b*M + m is clone m of sample b.
        """
        ...


def row_lengths(ids: Tensor, clones: int, grid: tuple[int, ...], lengths: Tensor | None) -> Tensor:
    """(B * M,) int64 number of real tokens of each row."""
    if lengths is None:
        lengths = torch.full_like(ids, math.prod(grid))
    return lengths.repeat_interleave(clones)


def within(lengths: Tensor, n: int) -> Tensor:
    """(R, n) bool, True at the first ``lengths[r]`` of n positions."""
    return torch.arange(n, device=lengths.device) < lengths[:, None]


def highest(score: Tensor, count: Tensor) -> Tensor:
    """(R, T) bool, True at the ``count[r]`` largest scores of each row."""
    order = score.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(score, dtype=torch.bool).scatter_(
        1, order, within(count, score.shape[1])
    )


def equalise(masked: Tensor, lengths: Tensor) -> Mask:
    """The mask, with padding dropped or kept so that every row sees the same number of tokens.

    Rows shorter than the longest keep fewer real tokens; they are filled up with padding, which
    attention ignores.

    Args:
        masked: (R, T) bool, within the rows' lengths.
        lengths: (R,) int64.
    """
    visible = lengths - masked.sum(1)
    padding = ~within(lengths, masked.shape[1])
    surplus = padding.cumsum(1) > (visible.max() - visible)[:, None]
    return Mask.of(masked, masked | (padding & surplus))
