"""MaskPolicy, and what the policies share: row lengths, exact counts, padding."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.types import Mask


class MaskPolicy:
    """A distribution over masks, as a pure function of its arguments.

    Attributes:
        equal_rows: whether all rows have the same number of masked tokens, so that these may be
            dropped.
    """

    equal_rows: ClassVar[bool] = True

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
            key: of the random numbers, ``fold_in(seed, epoch)``.
            ids: (B,) int64 global ids of the B samples.
            clones: M, masks per sample.
            grid: token grid, ``(T,)`` or ``(rows, columns)``.
            lengths: (B,) int64 number of real tokens, or None if all are.

        Returns:
            Mask of B * M rows; row b*M + m is clone m of sample b.
        """
        raise NotImplementedError

    def check(self, grid: tuple[int, ...], reads: str) -> None:
        """Refuse settings that do not fit the tokens, before anything is allocated.

        Args:
            grid: token grid of the longest input.
            reads: what the stem reads (``Stem.reads``).

        Raises:
            ConfigError: naming the key below ``masking``.
        """


def check_share(prob: float) -> None:
    """Refuse a share of masked tokens that is not between 0 and 1."""
    if not 0 < prob < 1:
        raise ConfigError("masking.prob", prob, "must lie between 0 and 1")


def check_length(length: int, grid: tuple[int, ...]) -> None:
    """Refuse spans or blocks that are as long as a side of the grid."""
    if not 1 <= length < min(grid):
        rule = f"must be less than the {min(grid)} tokens along a side of the input"
        raise ConfigError(
            "masking.length", length, rule, f"type masking.length={min(grid) // 4 or 1}"
        )


def row_lengths(ids: Tensor, clones: int, grid: tuple[int, ...], lengths: Tensor | None) -> Tensor:
    """(samples * clones,) int64 number of real tokens in each row."""
    if lengths is None:
        lengths = torch.full_like(ids, math.prod(grid))
    return lengths.repeat_interleave(clones)


def within(lengths: Tensor, n: int) -> Tensor:
    """(rows, n) bool, True at the first ``lengths[r]`` of the n positions of row r."""
    return torch.arange(n, device=lengths.device) < lengths[:, None]


def highest(score: Tensor, count: Tensor) -> Tensor:
    """(rows, tokens) bool, True at the ``count[r]`` largest scores of each row r."""
    order = score.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(score, dtype=torch.bool).scatter_(
        1, order, within(count, score.shape[1])
    )


def equalise(masked: Tensor, lengths: Tensor) -> Mask:
    """Make all rows see the same number of tokens: rows with fewer visible tokens also see padding,
    which attention ignores.

    Args:
        masked: (rows, tokens) bool, False at padding.
        lengths: (rows,) int64 number of real tokens in each row.
    """
    visible = lengths - masked.sum(1)
    padding = ~within(lengths, masked.shape[1])
    surplus = padding.cumsum(1) > (visible.max() - visible)[:, None]
    return Mask.of(masked, masked | (padding & surplus))
