"""At the end of a run, and on request during it: is the encoder better than a random one and than
raw features?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from rich import get_console
from rich.table import Table

from d2v_pretrain.checkpoint.file import write_text
from d2v_pretrain.evaluation.classifiers import effective_rank
from d2v_pretrain.evaluation.probe import features, probe, table, verdict
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.training.callbacks.metrics import Meter
from d2v_pretrain.training.fsdp import full_tensor

HEALTH = ("target_std", "target_position_std", "pred_std", "pred_position_std")


class Probe(Meter):
    """Probes the teacher when the run has reached its last step; prints the tables and writes
    ``probe.json``.

    The file holds ``evaluate.probe``'s result for the first task of the datamodule, with ``data``
    and ``step``, and under ``others`` the same for further tasks. Without labels it holds the
    effective rank of both encoders on a fixed sample and the last numbers on collapse. A run that
    was stopped early, to go on later, is not probed.

    The module has ``objective.teacher.encoder``; the trainer a datamodule with ``describe()``,
    ``probe_tasks()`` and ``health_batches(n)``.

    Args:
        folder: the run's folder.
        random: makes the encoder that this run started from, or one like it, without training.
        every: also probe the teacher on logged steps that divide by this, into
            ``probe_<task>_<metric>`` of the metrics; 0 for the end only.
        samples: how many unlabelled samples to take where there are no labels.
    """

    def __init__(
        self, folder: str | Path, random: Callable[[], Encoder], every: int = 0, samples: int = 256
    ) -> None:
        self.path, self.random, self.every, self.samples = (
            Path(folder) / "probe.json",
            random,
            every,
            samples,
        )
        self.last: dict[str, float] = {}

    def observe(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        """The headline metric of every task, on steps that are due."""
        if not self.every or trainer.global_step % self.every:
            return {}
        encoder = self._teacher(module)
        results = [probe(task, {"pretrained": encoder}) for task in _data(trainer).probe_tasks()]
        return {
            f"probe_{r['task']}_{r['headline']}": r[r["headline"]]["pretrained"] for r in results
        }

    def receive(self, trainer: Trainer, module: LightningModule, values: dict[str, float]) -> None:
        """Keep the last numbers, for the report of a run without labels."""
        self.last = values

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge, print, write; on rank 0. Not in ``on_train_end``: there the last checkpoint is not
        saved yet."""
        if trainer.global_step < trainer.max_steps:
            return
        encoders = {"random": self._random(pl_module), "pretrained": self._teacher(pl_module)}
        if trainer.is_global_zero:
            self._judge(trainer, encoders)

    def _judge(self, trainer: Trainer, encoders: dict[str, Encoder]) -> None:
        tasks, data = _data(trainer).probe_tasks(), _data(trainer).describe()
        results = [probe(task, encoders) for task in tasks]
        get_console().print(f"\nData: {data}", highlight=False, soft_wrap=True)
        for result in results:
            get_console().print(table(result), verdict(result), "", highlight=False)
        report = (
            results[0] | {"others": results[1:]} if results else self._unlabelled(trainer, encoders)
        )
        write_text(
            json.dumps(report | {"data": data, "step": trainer.global_step}, indent=2) + "\n",
            self.path,
        )

    def _random(self, module: LightningModule) -> Encoder:
        """Made without moving the generators of training."""
        with torch.random.fork_rng(devices=[]):
            return self.random().to(module.device).requires_grad_(False)

    def _teacher(self, module: LightningModule) -> Encoder:
        """A copy, whole and on its own even if the teacher is shared out over ranks, all of which
        must call."""
        teacher: Encoder = module.objective.teacher.encoder  # type: ignore[union-attr, assignment]
        encoder = self._random(module)
        encoder.load_state_dict({name: full_tensor(t) for name, t in teacher.state_dict().items()})
        return encoder

    def _unlabelled(self, trainer: Trainer, encoders: dict[str, Encoder]) -> dict[str, Any]:
        sample = _data(trainer).health_batches(self.samples)
        ranks = {
            name: effective_rank(features(encoder, sample)[0]) for name, encoder in encoders.items()
        }
        out = Table(
            "measure", "random encoder", "pretrained encoder", title="No labels, so no probe"
        )
        out.add_row(
            f"effective rank, of {encoders['random'].width}",
            *(f"{rank:.1f}" for rank in ranks.values()),
        )
        for name in HEALTH:
            if name in self.last:
                out.add_row(name, "", f"{self.last[name]:.3f}")
        get_console().print(out)
        return {"effective_rank": ranks} | {
            name: self.last[name] for name in HEALTH if name in self.last
        }


def _data(trainer: Trainer) -> Any:
    """The datamodule, by its duck type: d2v_pretrain never imports datamodules."""
    return trainer.datamodule  # type: ignore[attr-defined]
