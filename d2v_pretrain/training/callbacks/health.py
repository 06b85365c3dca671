"""Health: warns of collapse by the spread of targets and predictions, and logs the effective
rank.
"""

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

logger = logging.getLogger(__name__)

WARNINGS = {
    "target": "the teacher's targets hardly vary (std {target_std:.3f}): it has collapsed to a "
    "constant, and a low loss means nothing. Slow the teacher down (ema.start, ema.end nearer to "
    "1), lower lr, or raise warmup",
    "prediction": "predictions hardly vary (std {pred_std:.4f}): the student predicts the same "
    "everywhere. Lower lr, raise warmup, or check that the inputs differ",
    "position": "targets depend on the position and hardly on the sample (std "
    "{target_position_std:.3f} at a fixed position, {target_std:.3f} overall): the student can "
    "predict them without reading its input. Slow the teacher down (ema.start, ema.end nearer to "
    "1), or use a larger batch",
}


class Health(Meter):
    """Logs ``target_std, pred_std, target_position_std, pred_position_std`` and at some steps
    ``effective_rank``. Warns once per symptom of collapse.

    It needs ``module.last_output`` (of the last micro-batch), ``module.objective`` with
    ``statistics`` and ``teacher.encoder``, and ``health_batches(n)`` of the trainer's datamodule.

    Args:
        min_target_std, min_pred_std: warn below; the reference stops there (``min_target_var``,
            ``min_pred_var``).
        min_position_share: warn where ``target_position_std / target_std`` is below.
        after: first step at which warnings are given; predictions of a new student hardly vary.
        rank_every: compute the effective rank at logged steps that are multiples of this.
        samples: number of samples that the effective rank is computed on.
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
        self.min_target_std, self.min_pred_std = min_target_std, min_pred_std
        self.min_position_share = min_position_share
        self.after, self.rank_every, self.samples = after, rank_every, samples
        self.warned: set[str] = set()
        self.sample: list[Batch] | None = None

    def observe(self, trainer: Trainer, module: LightningModule) -> dict[str, Tensor | float]:
        objective: Any = module.objective
        out: dict[str, Tensor | float] = dict(objective.statistics(module.last_output))
        if trainer.global_step % self.rank_every == 0:
            if self.sample is None:
                self.sample = trainer.datamodule.health_batches(self.samples)  # type: ignore[attr-defined]
            with unsharded(objective):
                encoder = objective.teacher.encoder
                out["effective_rank"] = effective_rank(features(encoder, self.sample)[0])
        return out

    def receive(self, trainer: Trainer, module: LightningModule, values: dict[str, float]) -> None:
        if trainer.global_step < self.after:
            return
        for symptom in self._symptoms(values):
            if symptom not in self.warned and trainer.is_global_zero:
                text = WARNINGS[symptom].format(**values)
                logger.warning("Step %d: %s.", trainer.global_step, text)
            self.warned.add(symptom)

    def _symptoms(self, values: dict[str, float]) -> list[str]:
        """Names of ``WARNINGS`` that apply. A constant target is also constant at each position, so
        "position" is only tried without "target". nan counts as healthy.
        """
        found = ["prediction"] if values["pred_std"] < self.min_pred_std else []
        if values["target_std"] < self.min_target_std:
            return [*found, "target"]
        if values["target_position_std"] < self.min_position_share * values["target_std"]:
            found.append("position")
        return found
