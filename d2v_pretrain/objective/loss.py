"""The regression loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class RegressionLoss:
    """``scale * sum_d smooth_l1(pred_d - target_d)`` for each row of D channels; squared error if
    ``beta`` is 0.

    Smooth L1 of a difference e is ``e^2 / (2 beta)`` if ``|e| < beta``, else ``|e| - beta / 2``.
    Source: fairseq ``d2v_loss``.

    Args:
        beta: 0 for squared error.
        scale: a number, ``sqrt_dim`` for ``1 / sqrt(D)`` (the reference's default) or ``dim`` for
            ``1 / D``, which makes the mean over rows a mean over elements (data2vec 1 vision).
    """

    beta: float = 0.0
    scale: float | str = "sqrt_dim"

    def __call__(self, pred: Tensor, target: Tensor) -> Tensor:
        """Predictions and targets, (N, D) float32 each -> the loss of each of the N rows."""
        pred, target = pred.float(), target.float()
        if self.beta == 0:
            error = F.mse_loss(pred, target, reduction="none")
        else:
            error = F.smooth_l1_loss(pred, target, reduction="none", beta=self.beta)
        return error.sum(-1) * self.factor(pred.shape[-1])

    def factor(self, width: int) -> float:
        """The factor on the sum over ``width`` channels."""
        named = {"sqrt_dim": width**-0.5, "dim": 1 / width}
        return named[self.scale] if isinstance(self.scale, str) else self.scale
