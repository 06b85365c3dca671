"""data2vec: predict what the teacher, who sees everything, makes of the parts that the student does
not see."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from d2v_pretrain.masking.base import MaskPolicy
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.objective.loss import RegressionLoss
from d2v_pretrain.objective.targets import Targets
from d2v_pretrain.objective.teacher import Teacher
from d2v_pretrain.objective.view import View
from d2v_pretrain.rng import fold_in
from d2v_pretrain.types import Batch, Mask, Output, Tokens


class Data2Vec(nn.Module):
    """data2vec 1 and 2 (Baevski et al., arXiv 2202.03555 and 2212.07525) for every modality.

    ==================  ============================  ==========================================
    seam                data2vec 1                    data2vec 2
    ==================  ============================  ==========================================
    ``view``            masked tokens replaced        masked tokens absent
    ``clones``          1                             M masks for one pass of the teacher
    ``predictor``       ``Head``                      ``ConvDecoder``
    ==================  ============================  ==========================================

    Args:
        student: the encoder that is trained.
        teacher: makes the teacher from the student.
        mask: mask policy.
        view: how the student meets the mask.
        predictor: student output -> predictions at masked positions.
        targets: teacher layers -> regression targets.
        loss: per-row regression loss.
        clones: M, masks per sample.
        cls_weight: weight of the CLS term: the first extra token predicts the mean target of its
            sample. As published it is multiplied by the number of predicted positions of the
            micro-batch, so that after the division by that number its weight per row is
            ``cls_weight``, which grows with B * M.
        teacher_view: changes the teacher's batch given the mask (``compat`` only; see
            ``MaskedTokensOnly``).
        seed: of the masks.
    """

    def __init__(
        self,
        student: Encoder,
        teacher: Callable[[Encoder], Teacher],
        mask: MaskPolicy,
        view: View,
        predictor: nn.Module,
        targets: Targets,
        loss: RegressionLoss,
        clones: int = 1,
        cls_weight: float = 0.0,
        teacher_view: Callable[[Batch, Mask], Batch] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        assert cls_weight == 0 or student.extra_tokens > 0, "the CLS term needs an extra token"
        self.student, self.predictor, self.teacher = student, predictor, teacher(student)
        self.mask, self.view, self.targets, self.loss = mask, view, targets, loss
        self.clones, self.cls_weight, self.teacher_view, self.seed = (
            clones,
            cls_weight,
            teacher_view,
            seed,
        )
        self.lr_scales: dict[str, float] = {}  # every parameter learns at the same rate

    @property
    def encoders(self) -> tuple[Encoder, Encoder]:
        """Student and teacher."""
        return self.student, self.teacher.encoder

    def after_step(self, updates: int) -> dict[str, float]:
        """What happens after optimizer step number ``updates``: the teacher moves. Returns numbers
        to log."""
        self.teacher.update(self.student, updates)
        return {"decay": self.teacher.decay(updates)}

    def forward(
        self, batch: Batch, mask: Mask | None = None, noise: Tensor | None = None
    ) -> Output:
        """One forward of student and teacher.

        Args:
            batch: B samples.
            mask: B * clones rows to use instead of the policy's.
            noise: (B * clones, T, D) to use at the gaps instead of fresh decoder noise.
        """
        mask = (self.draw(batch) if mask is None else mask).to(batch.inputs.device)
        local = self.student.stem(batch)
        target = self.target(batch, local, mask)  # (B, T, D)

        encoded = self.view(self.student, batch, local.repeat(self.clones), mask)
        pred = self.predictor(encoded.tokens, mask, local.grid, noise).float()  # (N, D)
        row, position = mask.index // mask.masked.shape[1], mask.index % mask.masked.shape[1]
        at_masked = target[row // self.clones, position]

        losses = {"regression": self.loss(pred, at_masked).sum()}
        if self.cls_weight:
            mean = target.mean(1).repeat_interleave(self.clones, 0)
            counted = mask.masked.any(1)  # not a sample of weight 0, which has nothing to predict
            losses["cls"] = (
                self.cls_weight * mask.count * (counted * self.loss(encoded.x[:, 0], mean)).sum()
            )
        detached = {name: value.detach() for name, value in losses.items()}
        return Output(
            torch.stack(list(losses.values())).sum(),
            mask.count,
            pred.detach(),
            at_masked,
            position,
            detached,
        )

    def draw(self, batch: Batch) -> Mask:
        """The policy's masks for a batch: a function of (seed, epoch, sample ids, clone), made on
        the host."""
        stem = self.student.stem
        key = fold_in(self.seed, batch.epoch)
        lengths = stem.token_lengths(batch.lengths)
        mask = self.mask(key, batch.ids, self.clones, stem.grid(batch.inputs.shape), lengths)
        if batch.weight is None:
            return mask
        counted = (batch.weight > 0).repeat_interleave(self.clones)
        return mask.without(~counted)

    @torch.no_grad()
    def target(self, batch: Batch, local: Tokens, mask: Mask) -> Tensor:
        """(B, T, D) float32 targets at every position, masked or not."""
        seen = batch if self.teacher_view is None else self.teacher_view(batch, mask)
        encoded = self.teacher(seen, local, self.targets.top_k, self.targets.tensor)
        return self.targets(encoded.layers, encoded.valid)
