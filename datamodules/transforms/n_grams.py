"""n_grams(): what a probe of texts compares the encoder with."""

from __future__ import annotations

import torch
from torch import Tensor

from d2v_pretrain.types import BOS, EOS, PAD, Batch

_BINS = 2048  # bins that n-grams are hashed into


def n_grams(batch: Batch) -> Tensor:
    """For each text of a batch, log(1 + count) of its 1-, 2- and 3-grams of tokens, hashed into
    bins: (texts, 2048) float32.

    <s> and </s> are left out.
    """
    ids, rows = batch.inputs, len(batch)
    counts = torch.zeros(rows, _BINS)
    word = (ids != BOS) & (ids != EOS) & (ids != PAD)
    for n in (1, 2, 3):
        width = ids.shape[1] - n + 1
        key, whole = torch.full((rows, width), n), torch.ones(rows, width, dtype=torch.bool)
        for i in range(n):
            # The modulus is a prime: products stay in 63 bits.
            key = (key * 1_000_003 + ids[:, i : i + width] + 1) % 2_147_483_647
            whole &= word[:, i : i + width]
        counts.scatter_add_(1, key % _BINS, whole.float())
    return counts.log1p()
