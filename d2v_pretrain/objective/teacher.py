"""The teacher: an exponential moving average of the student, in float32, always in eval mode."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from d2v_pretrain.models.encoder import Encoded, Encoder
from d2v_pretrain.objective.guard import UpdateGuard
from d2v_pretrain.schedules import Schedule
from d2v_pretrain.types import Batch, Tokens


class Teacher(nn.Module):
    """A complete encoder that follows the student: ``teacher <- decay * teacher + (1 - decay) *
    student``.

    Parameters whose name starts with one of ``copied`` are copied instead of averaged, as in the
    published recipes for the conv stem (audio) and the embeddings (text). Buffers are never
    averaged: the reference averages an integer index buffer, which makes it wrong by one.

    Args:
        student: its weights are the teacher's at the start.
        decay: schedule; read at the number of optimizer steps done.
        copied: names of the parts of the encoder that are copied, e.g. ``("stem", "positions")``.
        reads_student_stem: use the student's local features (the conv stem then runs once) instead
            of the teacher's own.
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
        self.guard = UpdateGuard(student)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode whatever ``mode`` is: no dropout, no layer drop."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, batch: Batch, local: Tokens, top_k: int, tensor: str) -> Encoded:
        """Encode the input without a mask.

        Args:
            batch: the input.
            local: the student's local features of the same input.
            top_k: number of last blocks whose outputs are returned.
            tensor: which output of a block, ``ffn`` (feed-forward) or ``block``.
        """
        if self.reads_student_stem:
            local = Tokens(local.x.detach(), local.grid, local.valid)
        else:
            local = self.encoder.stem(batch)
        return self.encoder(local, None, top_k, tensor)

    @torch.no_grad()
    def update(self, student: Encoder, updates: int, skipped: Tensor | None = None) -> None:
        """Move towards the student after its optimizer step number ``updates`` (from 1). For
        ``skipped`` see ``Objective.after_step``.

        The teacher is float32 even if the student is not: with a decay of .9999 a half-precision
        average would not move at all.
        """
        self.guard.steps = 0
        teachers = dict(self.encoder.named_parameters())
        students = {name: p.detach().float() for name, p in student.named_parameters()}
        copied = [name for name in teachers if any(map(name.startswith, self.copied))]
        averaged = [name for name in teachers if name not in copied]
        share: Tensor | float = 1 - self.decay(updates)
        if skipped is not None:
            share = share * (1 - skipped)  # stays on the device, so that the host does not wait
        for name in averaged:
            teachers[name].lerp_(students[name], share)
        for name in copied:
            teachers[name].copy_(students[name])
