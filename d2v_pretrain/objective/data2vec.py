"""data2vec: at masked positions, predict the representations that a teacher makes of the unmasked
input.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from d2v_pretrain.masking.base import MaskPolicy
from d2v_pretrain.models.encoder import Encoder, mean_of_valid
from d2v_pretrain.objective.base import Objective
from d2v_pretrain.objective.loss import RegressionLoss
from d2v_pretrain.objective.statistics import spread
from d2v_pretrain.objective.targets import Targets
from d2v_pretrain.objective.teacher import Teacher
from d2v_pretrain.objective.view import View
from d2v_pretrain.rng import fold_in
from d2v_pretrain.types import Batch, Mask, Output, Tokens


class Data2Vec(Objective):
    """data2vec 1 and 2 (Baevski et al., arXiv 2202.03555 and 2212.07525) for every modality.

    ==================  ============================  ==========================================
    seam                data2vec 1                    data2vec 2
    ==================  ============================  ==========================================
    ``view``            masked tokens replaced        masked tokens absent
    ``clones``          1                             several masks for one pass of the teacher
    ``predictor``       ``Head``                      ``ConvDecoder``
    ==================  ============================  ==========================================

    Args:
        student: the encoder that is trained.
        teacher: makes the teacher from the student.
        mask: mask policy.
        view: what the student sees of masked tokens.
        predictor: maps the student's output to predictions at masked positions.
        targets: maps layers of the teacher to regression targets.
        loss: regression loss of each row.
        clones: M, number of masks per sample.
        cls_weight: weight of the CLS term: the first extra token predicts the mean target of its
            sample. As published, the term is multiplied by the number of predicted positions of the
            micro-batch, so that after the division by that number its weight per row is
            ``cls_weight``, which grows with the size of the micro-batch and with M.
        teacher_view: changes the teacher's batch given the mask; None shows the teacher the batch
            as it is (both papers). See ``MaskedTokensOnly`` and ``Recolour``.
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
        self.clones, self.cls_weight = clones, cls_weight
        self.teacher_view, self.seed = teacher_view, seed

    @property
    def encoders(self) -> tuple[Encoder, Encoder]:
        return self.student, self.teacher.encoder

    def after_step(self, updates: int, skipped: Tensor | None = None) -> dict[str, float]:
        """Move the teacher towards the student. Call it after every optimizer step.

        Args:
            updates: number of optimizer steps done, 1 after the first.
            skipped: see ``Objective.after_step``; the teacher does not move in such a step.

        Returns:
            ``decay``, the teacher's decay of this step, for the log.
        """
        self.teacher.update(self.student, updates, skipped)
        return {"decay": self.teacher.decay(updates)}

    def forward(
        self, batch: Batch, mask: Mask | None = None, noise: Tensor | None = None
    ) -> Output:
        """One forward of student and teacher.

        Args:
            batch: B samples of T tokens.
            mask: B * clones rows, used instead of a mask that the policy draws.
            noise: (B * clones, T, D), used at dropped positions instead of fresh decoder noise; D
                is the width of the student.

        Raises:
            RuntimeError: ``after_step`` was not called after the last optimizer step.
        """
        if self.training:
            self.teacher.guard.check()
        mask = (self.draw(batch) if mask is None else mask).to(batch.inputs.device)
        local = self.student.stem(batch)
        target = self.target(batch, local, mask)  # (B, T, D)

        clones = local.repeat(self.clones)
        encoded = self.view(self.student, batch, clones, mask)
        pred = self.predictor(encoded.tokens, mask, local.grid, noise, clones.valid)
        pred = pred.float()  # (N, D)
        row, position = mask.index // mask.masked.shape[1], mask.index % mask.masked.shape[1]
        at_masked = target[row // self.clones, position]

        losses = {"regression": self.loss(pred, at_masked).sum()}
        if self.cls_weight:
            mean = mean_of_valid(target, local.valid).repeat_interleave(self.clones, 0)
            counted = mask.masked.any(1)  # a sample of weight 0 has nothing to predict
            rows = counted * self.loss(encoded.x[:, 0], mean)
            losses["cls"] = self.cls_weight * mask.count * rows.sum()
        detached = {name: value.detach() for name, value in losses.items()}
        loss_sum = torch.stack(list(losses.values())).sum()
        return Output(loss_sum, mask.count, pred.detach(), at_masked, position, detached)

    def draw(self, batch: Batch) -> Mask:
        """The masks that the policy draws for a batch, on the host. They depend on (seed, epoch,
        sample ids, clone) alone.
        """
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
        """The targets at every position, masked or not: (samples, tokens, width) float32."""
        seen = batch if self.teacher_view is None else self.teacher_view(batch, mask)
        encoded = self.teacher(seen, local, self.targets.top_k, self.targets.tensor)
        return self.targets(encoded.layers, encoded.valid)

    def statistics(self, output: Output) -> dict[str, Tensor]:
        """Spread of targets and predictions, loss terms, relative loss.

        ``loss_relative`` is the regression loss divided by the loss of predicting zero. The loss
        itself may rise while training goes well, because the targets grow; the relative loss does
        not depend on their size.
        """
        stats = {}
        if len(output.terms) > 1:
            stats = {f"loss_{name}": term / output.count for name, term in output.terms.items()}
        of_zero = self.loss(torch.zeros_like(output.target), output.target).sum()
        stats["loss_relative"] = output.terms["regression"] / of_zero
        for name, rows in (("target", output.target), ("pred", output.pred)):
            stats[f"{name}_std"], stats[f"{name}_position_std"] = spread(rows, output.position)
        return stats
