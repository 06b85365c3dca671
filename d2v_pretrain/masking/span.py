"""Spans of fixed length: data2vec 1's masking of audio (after wav2vec 2.0) and text (RoBERTa)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.masking.base import (
    MaskPolicy,
    check_length,
    check_share,
    highest,
    row_lengths,
    within,
)
from d2v_pretrain.rng import fold_in, noise
from d2v_pretrain.types import Mask


@dataclass(frozen=True)
class SpanMask(MaskPolicy):
    """Mask ``int(prob T / length + u)`` spans in a row of T tokens, u uniform in [0, 1). Starts are
    drawn without replacement, and spans may overlap.

    Source: fairseq ``data_utils.py:compute_mask_indices`` (static length) and
    ``mask_tokens_dataset.py``. Two effects are as published: with ``fit`` no span reaches the last
    frame, and with ``equal`` spans are broken up (with the published audio settings 49 % of a row
    is masked if it is drawn alone, 44 % if 24 rows are made equal).

    Args:
        prob: expected share of tokens inside spans if spans did not overlap.
        length: tokens per span.
        fit: starts lie in [0, T - length), so that no span is cut (audio); otherwise in [0, T),
            and spans are cut at the end of the row (text).
        equal: unmask random single tokens until every row has as many as the row with the fewest.
        min_spans: least number of spans in a row.
        keep_prob: share of the chosen tokens that the student sees unchanged, as in BERT; they do
            not count in the loss.
        random_prob: share of the chosen tokens that are replaced by a random token; they do not
            count in the loss either. Needs text.
    """

    prob: float
    length: int
    fit: bool = True
    equal: bool = True
    min_spans: int = 1
    keep_prob: float = 0.0
    random_prob: float = 0.0

    @property
    def equal_rows(self) -> bool:  # type: ignore[override]
        return self.equal

    def check(self, grid: tuple[int, ...], reads: str) -> None:
        check_share(self.prob)
        check_length(self.length, grid)
        if self.random_prob and reads != "tokens":
            rule = f"needs text, and the stem reads {reads}"
            raise ConfigError("masking.random_prob", self.random_prob, rule, "set it to 0")

    def __call__(
        self,
        key: int,
        ids: Tensor,
        clones: int,
        grid: tuple[int, ...],
        lengths: Tensor | None = None,
    ) -> Mask:
        rows, size = row_lengths(ids, clones, grid, lengths), math.prod(grid)
        masked = self._spans(key, ids, clones, rows, size)
        if self.equal:
            fewest = masked.sum(1).min().expand(len(rows))
            masked = highest(masked + noise(fold_in(key, 2), ids, clones, size), fewest)
        if self.keep_prob + self.random_prob == 0:
            return Mask.of(masked)
        fate = noise(fold_in(key, 3), ids, clones, size)
        random = masked & (fate >= 1 - self.random_prob)
        replacement = noise(fold_in(key, 4), ids, clones, size).masked_fill(~random, -1.0)
        return Mask.of(masked & (fate >= self.keep_prob) & ~random, random=replacement)

    def _spans(self, key: int, ids: Tensor, clones: int, rows: Tensor, size: int) -> Tensor:
        """(rows, tokens) bool, True inside the spans."""
        uniform = noise(fold_in(key, 0), ids, clones, 1)[:, 0]
        count = (self.prob * rows.double() / self.length + uniform).long()
        count = torch.minimum(count.clamp(min=self.min_spans), rows)
        starts = torch.maximum(rows - self.length, count + 1) if self.fit else rows
        score = noise(fold_in(key, 1), ids, clones, size).masked_fill(~within(starts, size), -1.0)
        begun = highest(score, count).long().cumsum(1)
        ended = torch.nn.functional.pad(begun, (self.length, 0))[:, :size]
        return (begun > ended) & within(rows, size)
