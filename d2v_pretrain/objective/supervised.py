"""Supervised classification: a linear layer on the mean of the encoder's output."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_pretrain.models.encoder import Encoder, mean_of_valid
from d2v_pretrain.objective.base import Objective
from d2v_pretrain.types import Batch, Output


class Supervised(Objective):
    """Mean over the real tokens of the encoder's output -> dropout -> linear -> cross entropy; all
    weights are trained.

    Args:
        student: the encoder.
        classes: number of classes; read from the labels at start.
        dropout: on the pooled output.
        layer_decay: ratio of a block's learning rate to that of the block after it. Stem and
            positions count as one block before the first; final norm and shared attention bias have
            the learning rate of the head (BEiT ``optim_factory.py: get_num_layer_for_vit``).
    """

    def __init__(
        self, student: Encoder, classes: int | None, dropout: float = 0.0, layer_decay: float = 1.0
    ) -> None:
        super().__init__()
        assert classes is not None, "the number of classes is read from the labels at start"
        self.student, self.dropout = student, dropout
        self.predictor = nn.Linear(student.width, classes)
        # No token is masked: DDP would wait for a gradient.
        if student.stem.mask_vector is not None:
            student.stem.mask_vector.requires_grad_(False)
        scales = {
            "student.": layer_decay ** (student.depth + 1),
            "student.final_norm.": 1.0,
            "student.bias.": 1.0,
        }
        for depth in range(student.depth):
            scale = layer_decay ** (student.depth - depth)
            scales |= {f"student.blocks.{depth}.": scale, f"student.layer_biases.{depth}.": scale}
        self.lr_scales = scales

    def logits(self, batch: Batch) -> Tensor:
        """(samples, classes) float32."""
        encoded = self.student.encode(batch)
        pooled = mean_of_valid(encoded.tokens, encoded.valid)
        return self.predictor(F.dropout(pooled, self.dropout, self.training)).float()

    def forward(self, batch: Batch) -> Output:
        """Cross entropy of the samples that could be decoded; ``count`` is their number."""
        assert batch.labels is not None, "fine-tuning needs labels"
        logits = self.logits(batch)
        target = F.one_hot(batch.labels, logits.shape[1]).float()
        rows = F.cross_entropy(logits, batch.labels, reduction="none")
        count = len(batch)
        if batch.weight is not None:
            rows, count = rows * batch.weight.to(rows), int((batch.weight > 0).sum())
        loss = rows.sum()
        position = torch.zeros(len(batch), dtype=torch.int64, device=rows.device)
        terms = {"cross_entropy": loss.detach()}
        return Output(loss, count, logits.detach(), target, position, terms)
