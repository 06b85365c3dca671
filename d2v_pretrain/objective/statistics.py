"""Signs of collapse: how much targets and predictions vary, overall and at a fixed position."""

from __future__ import annotations

import torch
from torch import Tensor


def spread(rows: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviation over all rows, and over rows at the same position; averaged over channels
    (and positions).

    Targets are normalised, so their overall deviation stays near 1 even if they depend on the
    position alone. The deviation at a fixed position then falls to 0: targets no longer tell
    samples apart. The overall number is the reference's ``target_var``, which is in spite of its
    name ``sqrt(var + 1e-6)``.

    Args:
        rows: (N, D) float targets or predictions, D channels of N rows.
        position: (N,) int64 token position of each row.

    Returns:
        Two scalars on the device of ``rows``; nan if no position occurs twice.
    """
    rows = rows.detach().double()
    overall = (rows.var(0) + 1e-6).sqrt().mean()
    places, index = position.unique(return_inverse=True)
    count = torch.bincount(index, minlength=len(places)).to(rows.dtype)[:, None]
    mean = torch.zeros(len(places), rows.shape[1], dtype=rows.dtype, device=rows.device)
    mean = mean.index_add(0, index, rows) / count
    squares = torch.zeros_like(mean).index_add(0, index, (rows - mean[index]).square())
    shared = count[:, 0] > 1
    fixed = (squares[shared] / (count[shared] - 1) + 1e-6).sqrt().mean()
    return overall.float(), fixed.float()
