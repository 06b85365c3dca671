"""Blocks around random centres, and their inverse, in one or two dimensions: data2vec 2's masking
of audio and images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from d2v_pretrain.masking.base import (
    MaskPolicy,
    check_length,
    check_share,
    equalise,
    highest,
    row_lengths,
    within,
)
from d2v_pretrain.rng import fold_in, noise
from d2v_pretrain.types import Mask


@dataclass(frozen=True)
class BlockMask(MaskPolicy):
    """Blocks around ``int(T (p + adjust) / length^d)`` random centres, then an exact count. T is
    the number of tokens of a row, d the dimensions of the grid, and p the share covered by blocks:
    prob.

    If the blocks cover more than ``int(T p)`` tokens of a row, random single tokens are taken out;
    if fewer, random single tokens are added. With ``inverse`` the blocks stay *visible* and p = 1 -
    prob. Blocks are cut off at the borders, so edges are covered less than the middle. This effect
    and the many single tokens are as published.

    Source: fairseq ``data_utils.py:compute_block_mask_1d`` and ``_2d``.

    Args:
        prob: share of tokens to mask, in (0, 1); exact but for rounding down.
        length: side of a block in tokens.
        adjust: added to the share for the number of centres, to make up for overlaps.
        inverse: blocks stay visible, all else is masked.
    """

    prob: float
    length: int
    adjust: float = 0.0
    inverse: bool = False

    def check(self, grid: tuple[int, ...], reads: str) -> None:
        check_share(self.prob)
        check_length(self.length, grid)

    def __call__(
        self,
        key: int,
        ids: Tensor,
        clones: int,
        grid: tuple[int, ...],
        lengths: Tensor | None = None,
    ) -> Mask:
        assert lengths is None or len(grid) == 1, (
            "rows of unequal length need a one-dimensional grid"
        )
        rows, size = row_lengths(ids, clones, grid, lengths), math.prod(grid)
        share = 1 - self.prob if self.inverse else self.prob
        real = within(rows, size)
        covered = self._blocks(key, ids, clones, grid, rows, share) & real
        # Covered tokens score above all others: taking the highest scores adds or removes random
        # single tokens as needed.
        score = (covered + noise(fold_in(key, 1), ids, clones, size)).masked_fill(~real, -1.0)
        chosen = highest(score, (rows.double() * share).long())
        return equalise(real & ~chosen if self.inverse else chosen, rows)

    def _blocks(
        self, key: int, ids: Tensor, clones: int, grid: tuple[int, ...], rows: Tensor, share: float
    ) -> Tensor:
        """(rows, tokens) bool, True inside the blocks; centres are drawn with replacement."""
        count = (rows.double() * ((share + self.adjust) / self.length ** len(grid))).long()
        uniform = noise(fold_in(key, 0), ids, clones, max(1, int(count.max())))
        centre = (uniform * rows[:, None]).long()
        reach = torch.arange(self.length, device=rows.device) - self.length // 2
        if len(grid) == 1:
            cells = torch.minimum((centre[..., None] + reach).clamp(min=0), rows[:, None, None] - 1)
        else:
            row = (centre[..., None, None] // grid[1] + reach[:, None]).clamp(0, grid[0] - 1)
            column = (centre[..., None, None] % grid[1] + reach).clamp(0, grid[1] - 1)
            cells = row * grid[1] + column
        used = within(count, centre.shape[1])[..., None].expand(-1, -1, self.length ** len(grid))
        covered = torch.zeros(len(rows), math.prod(grid), device=rows.device)
        return covered.scatter_add_(1, cells.flatten(1), used.flatten(1).float()) > 0
