"""Losses that several heads share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface.inputs import check_fits, class_ids


def token_loss(logits: Tensor, labels: Tensor | None) -> Tensor | None:
    """Cross entropy of logits (texts, tokens, classes), averaged over the labels (texts, tokens)
    that are not -100; None without labels.

    Raises:
        ConfigError: see ``class_ids``.
    """
    if labels is None:
        return None
    ids = class_ids(labels, logits.shape[-1], *logits.shape[:-1])
    return F.cross_entropy(logits.flatten(0, -2), ids.to(logits.device).flatten())


def classification_loss(
    logits: Tensor, labels: Tensor | None, problem: str | None
) -> Tensor | None:
    """The loss of a classifier: mean squared error, cross entropy or binary cross entropy.

    Source: transformers' ``ForSequenceClassificationLoss``. Theirs decides which loss to use by
    the labels of the first call and stores it in the configuration; here each call decides.

    Args:
        logits: (B, C) for B inputs and C classes or numbers.
        labels: for cross entropy (B,) class ids, -100 to leave out. For the others numbers in the
            shape of ``logits``, which may have more or fewer axes of length one. None: no loss.
        problem: ``config.problem_type``. None chooses mean squared error if C is 1, else cross
            entropy for whole-numbered labels and binary cross entropy for others.

    Raises:
        ConfigError: labels of another type or another number.
    """
    if labels is None:
        return None
    if not torch.is_tensor(labels):
        given = f"of type {type(labels).__name__}"
        raise ConfigError("labels", given, "must be a tensor", "write torch.tensor(labels)")
    labels = labels.to(logits.device)
    if problem is None:
        several = labels.is_floating_point()
        found = "multi_label_classification" if several else "single_label_classification"
        problem = "regression" if logits.shape[-1] == 1 else found
    if problem == "single_label_classification":
        return token_loss(logits, labels)
    check_fits("labels", labels, logits.shape, f" for problem_type={problem}")
    loss = F.mse_loss if problem == "regression" else F.binary_cross_entropy_with_logits
    return loss(logits, labels.reshape(logits.shape).to(logits.dtype))
