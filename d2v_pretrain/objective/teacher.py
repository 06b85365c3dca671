"""The teacher: an exponential moving average of the student, in float32, always in eval mode."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from d2v_pretrain.models.encoder import Encoded, Encoder
from d2v_pretrain.schedules import Schedule
from d2v_pretrain.types import Batch, Tokens


class Teacher(nn.Module):
    """A complete encoder that follows the student: ``teacher <- decay * teacher + (1 - decay) *
    student``.

    Parameters whose name starts with one of ``copied`` are taken over unaveraged, as the published
    recipes do for the conv stem (audio) and the embeddings (text). Buffers are never averaged: the
    reference averages an integer index buffer and shifts it.

    Args:
        student: copied at the start.
        decay: schedule of the number of updates done.
        copied: names of encoder parts that are copied, e.g. ``("stem", "positions")``.
        reads_student_stem: take the student's local features (the conv extractor then runs once)
            instead of the teacher's own.
    """

    def __init__(
        self,
        student: Encoder,
        decay: Schedule,
        copied: Sequence[str] = (),
        reads_student_stem: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(student).float().requires_grad_(False).eval()
        self.decay, self.copied, self.reads_student_stem = decay, tuple(copied), reads_student_stem

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode: no dropout, no layer drop, whatever the caller asks for."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, batch: Batch, local: Tokens, top_k: int, tensor: str) -> Encoded:
        """Encode the unmasked input.

        Args:
            batch: the input.
            local: the student's local features of it.
            top_k: layers to return.
            tensor: ``ffn`` or ``block``.
        """
        if self.reads_student_stem:
            local = Tokens(local.x.detach(), local.grid, local.valid)
        else:
            local = self.encoder.stem(batch)
        return self.encoder(local, None, top_k, tensor)

    @torch.no_grad()
    def update(self, student: Encoder, updates: int) -> None:
        """Move towards the student after its optimizer step number ``updates`` (the first is 1).

        Weights of float32 masters only: at decays of .9999 a half-precision accumulator would not
        move at all."""
        ours, theirs = dict(self.encoder.named_parameters()), dict(student.named_parameters())
        averaged = [name for name in ours if not name.startswith(self.copied or ("\0",))]
        copied = [name for name in ours if name.startswith(self.copied or ("\0",))]
        _move(averaged, ours, theirs, 1 - self.decay(updates))
        _move(
            copied, ours, theirs, 1.0
        )  # exactly a copy; _foreach_copy_ knows no shares of trainer=fsdp


def _move(
    names: list[str], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], weight: float
) -> None:
    if names:
        torch._foreach_lerp_(
            [ours[n] for n in names], [theirs[n].detach().float() for n in names], weight
        )
