"""Independent tokens: data2vec 2's masking of text, as in masked autoencoders."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from d2v_pretrain.masking.base import (
    MaskPolicy,
    check_share,
    equalise,
    highest,
    row_lengths,
    within,
)
from d2v_pretrain.rng import fold_in, noise
from d2v_pretrain.types import Mask


@dataclass(frozen=True)
class TokenMask(MaskPolicy):
    """Keep ``int(T (1 - prob))`` of the T tokens of a row visible, at least one, drawn uniformly
    without replacement.

    Source: fairseq ``modalities/base.py:random_masking``, which masks padding like any token and
    counts it in the loss. Here only real tokens are masked; without padding the two agree.

    Args:
        prob: share of tokens to mask, in (0, 1).
    """

    prob: float

    def check(self, grid: tuple[int, ...], reads: str) -> None:
        check_share(self.prob)

    def __call__(
        self,
        key: int,
        ids: Tensor,
        clones: int,
        grid: tuple[int, ...],
        lengths: Tensor | None = None,
    ) -> Mask:
        rows = row_lengths(ids, clones, grid, lengths)
        size = math.prod(grid)
        score = noise(fold_in(key, 0), ids, clones, size).masked_fill(~within(rows, size), -1.0)
        kept = (rows.double() * (1 - self.prob)).long().clamp(min=1)
        return equalise(highest(score, rows - kept), rows)
