"""Supervised classification: a linear layer over the encoder's mean output, with the interface of
``Data2Vec``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_pretrain.models.encoder import Encoder, mean_of_valid
from d2v_pretrain.types import Batch, Output


class Supervised(nn.Module):
    """Mean over the real tokens of the encoder's output -> dropout -> linear -> cross entropy; all
    weights are trained.

    Args:
        student: the encoder.
        classes: of the labels; the run asks the data before it builds this.
        dropout: on the pooled output.
        layer_decay: learning rate of a block over that of the next one; stem and positions count as
            one before the first, final norm and shared attention bias learn like the head (BEiT
            ``optim_factory.py: get_num_layer_for_vit``).
    """

    def __init__(
        self, student: Encoder, classes: int | None, dropout: float = 0.0, layer_decay: float = 1.0
    ) -> None:
        super().__init__()
        assert classes is not None, "the data say how many classes there are"
        self.student, self.predictor, self.dropout = (
            student,
            nn.Linear(student.width, classes),
            dropout,
        )
        for name, parameter in student.named_parameters():
            if name.endswith(
                "mask_vector"
            ):  # nothing is masked, and ranks would wait for its gradient for ever
                parameter.requires_grad_(False)
        scales = {
            "student.": layer_decay ** (student.depth + 1),
            "student.final_norm.": 1.0,
            "student.bias.": 1.0,
        }
        for depth in range(student.depth):
            rate = layer_decay ** (student.depth - depth)
            scales |= {f"student.blocks.{depth}.": rate, f"student.layer_biases.{depth}.": rate}
        self.lr_scales = scales

    @property
    def encoders(self) -> tuple[Encoder]:
        """The one that is trained."""
        return (self.student,)

    def after_step(self, updates: int) -> dict[str, float]:
        """Nobody follows."""
        return {}

    def logits(self, batch: Batch) -> Tensor:
        """(B, classes) float32."""
        encoded = self.student.encode(batch)
        pooled = mean_of_valid(encoded.tokens, encoded.valid)
        return self.predictor(F.dropout(pooled, self.dropout, self.training)).float()

    def forward(self, batch: Batch) -> Output:
        """Cross entropy summed over the samples that could be read."""
        assert batch.labels is not None, "fine-tuning needs labels"
        logits = self.logits(batch)
        target = F.one_hot(batch.labels, logits.shape[1]).float()
        rows = F.cross_entropy(logits, batch.labels, reduction="none")
        count = len(batch)
        if batch.weight is not None:
            rows, count = rows * batch.weight.to(rows), int((batch.weight > 0).sum())
        loss = rows.sum()
        position = torch.zeros(len(batch), dtype=torch.int64, device=rows.device)
        return Output(
            loss, count, logits.detach(), target, position, {"cross_entropy": loss.detach()}
        )
