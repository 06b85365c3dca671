"""Objective: what a training loop needs from the model that it trains."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.types import Output


class Objective(nn.Module):
    """An encoder with everything that turns a batch into a loss; its ``forward`` takes a ``Batch``
    and returns an ``Output``.

    A training step is: ``objective(batch).loss.backward()``, ``optimizer.step()``,
    ``objective.after_step(updates)``.

    Attributes:
        student: the encoder that is trained.
        predictor: what reads the student's output. Its own output must be the first tensor that
            backward reaches (FSDP relies on it).
        lr_scales: factor on the learning rate by prefix of the parameter's name; see
            ``training.optim.parameter_groups``.
    """

    student: Encoder
    predictor: nn.Module
    lr_scales: Mapping[str, float]

    def __init__(self) -> None:
        super().__init__()
        self.lr_scales = {}

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """The encoders that start from ``init_from`` and that FSDP shards block by block."""
        return (self.student,)

    def after_step(self, updates: int, skipped: Tensor | None = None) -> dict[str, float]:
        """Finish optimizer step number ``updates`` (from 1), and return numbers to log.

        Args:
            updates: the number of the step.
            skipped: () float32 on the device, 1 if the optimizer changed nothing in this step and 0
                if it did; None for 0.
        """
        return {}

    def statistics(self, output: Output) -> dict[str, Tensor]:
        """Numbers to log about the last micro-batch, as tensors without axes on its device."""
        return {}
