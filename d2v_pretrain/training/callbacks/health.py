"""Collapse and divergence, seen early and named: spread of targets and predictions, effective
rank."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from d2v_pretrain.evaluation.classifiers import effective_rank
from d2v_pretrain.evaluation.probe import features
from d2v_pretrain.training.callbacks.metrics import Meter
from d2v_pretrain.training.fsdp import unsharded
from d2v_pretrain.types import Batch

log = logging.getLogger(__name__)

WARNINGS = {
    "target": "the teacher's targets hardly vary (std {target_std:.3f}): it has collapsed to a constant, and a low "
    "loss means nothing. Slow the teacher down (ema.start, ema.end nearer to 1), lower lr, or raise warmup",
    "prediction": "predictions hardly vary (std {pred_std:.4f}): the student answers the same everywhere. Lower lr, "
    "raise warmup, or check that the inputs differ",
    "position": "targets depend on the position and hardly on the sample (std {target_position_std:.3f} at a fixed "
    "position, {target_std:.3f} overall): the student can predict them without looking. Slow the teacher down "
    "(ema.start, ema.end nearer to 1), or use a larger batch",
}


class Health(Meter):
    """Logs ``target_std, pred_std, target_position_std, pred_position_std`` and now and then
    ``effective_rank``.

    Warns once per symptom, in plain words. Steps that are not finite are the business of
    ``BadSteps``.

    The module has ``last_output: Output`` of its last micro-batch, ``statistics()`` of it, and
    ``objective`` with ``teacher.encoder``; the trainer a datamodule with ``health_batches(n)``.

    Args:
        min_target_std, min_pred_std: warn below; the reference stops there (``min_target_var``,
            ``min_pred_var``).
        min_position_share: warn where ``target_position_std / target_std`` is below.
        after: steps before anything is judged; a fresh student's predictions hardly vary.
        rank_every: steps between effective ranks (on logged steps that divide by it). samples: how
            many it looks at.
    """

    def __init__(
        self,
        min_target_std: float = 0.1,
        min_pred_std: float = 0.01,
        min_position_share: float = 0.2,
        after: int = 200,
        rank_every: int = 500,
        samples: int = 256,
    ) -> None:
        self.min_target_std, self.min_pred_std, self.min_position_share = (
            min_target_std,
            min_pred_std,
            min_position_share,
        )
        self.after, self.rank_every, self.samples = after, rank_every, samples
        self.warned: set[str] = set()
        self.sample: list[Batch] | None = None

    def observe(self, trainer: Trainer, module: LightningModule) -> dict[str, Tensor | float]:
        """See the class."""
        out: dict[str, Tensor | float] = dict(module.statistics())  # type: ignore[operator]
        if trainer.global_step % self.rank_every == 0:
            if self.sample is None:
                self.sample = trainer.datamodule.health_batches(self.samples)  # type: ignore[attr-defined]
            with unsharded(module.objective):  # type: ignore[arg-type]
                teacher: Any = module.objective.teacher  # type: ignore[union-attr]
                out["effective_rank"] = effective_rank(features(teacher.encoder, self.sample)[0])
        return out

    def receive(self, trainer: Trainer, module: LightningModule, values: dict[str, float]) -> None:
        """Warn of collapse."""
        if trainer.global_step < self.after:
            return
        for symptom in self._symptoms(values):
            if symptom not in self.warned and trainer.is_global_zero:
                log.warning("Step %d: %s.", trainer.global_step, WARNINGS[symptom].format(**values))
            self.warned.add(symptom)

    def _symptoms(self, values: dict[str, float]) -> list[str]:
        """A constant is also constant at every position: the first name is enough then. nan
        compares as healthy."""
        found = ["prediction"] if values["pred_std"] < self.min_pred_std else []
        if values["target_std"] < self.min_target_std:
            return [*found, "target"]
        if values["target_position_std"] < self.min_position_share * values["target_std"]:
            found.append("position")
        return found
