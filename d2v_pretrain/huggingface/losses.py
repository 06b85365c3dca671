"""Losses that several heads share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross entropy of (B, T, C) logits, averaged over all labels (B, T) that are not -100."""
    return F.cross_entropy(logits.flatten(0, -2), labels.to(logits.device).flatten())


def classification_loss(logits: Tensor, labels: Tensor, problem: str | None) -> Tensor:
    """The mean squared error, cross entropy or binary cross entropy of a classifier.

    Source: transformers ``ForSequenceClassificationLoss``, which writes what it found in the labels
    of the first call into the configuration, and stays with it; here each call looks for itself.

    Args:
        logits: (B, C).
        labels: (B,) class ids for cross entropy, -100 to leave out; for the others numbers in the
            shape of ``logits``, where axes of length one do not matter.
        problem: ``config.problem_type``; None for the first if there is one label, else the second
            for whole-numbered labels and the last for others.
    """
    if problem is None:
        found = (
            "multi_label_classification"
            if labels.is_floating_point()
            else "single_label_classification"
        )
        problem = "regression" if logits.shape[-1] == 1 else found
    labels = labels.to(logits.device)
    if problem == "single_label_classification":
        return token_loss(logits, labels)
    loss = F.mse_loss if problem == "regression" else F.binary_cross_entropy_with_logits
    return loss(logits, labels.reshape(logits.shape).to(logits.dtype))
