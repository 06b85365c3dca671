"""Probe: compares the pretrained encoder with a random one and with raw features, at the end of a
run and on request during it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from rich import get_console
from rich.table import Table

from d2v_pretrain.atomic_files import atomic
from d2v_pretrain.checkpoint import ownership
from d2v_pretrain.evaluation.classifiers import effective_rank
from d2v_pretrain.evaluation.probe import features, probe, table, verdict
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.training.callbacks.metrics import Meter
from d2v_pretrain.training.fsdp import full_tensor
from d2v_pretrain.training.signals import STOP
from d2v_pretrain.types import Batch

HEALTH = ("target_std", "target_position_std", "pred_std", "pred_position_std")


class Probe(Meter):
    """Probes the teacher after the run's last step, prints the tables and writes ``probe.json``.

    The file holds the result of ``evaluation.probe.probe`` for the first probe task of the
    datamodule, with ``data`` and ``step``, and under ``others`` the results of further tasks.
    Without labels it holds the effective rank of both encoders on a fixed sample, and the last
    numbers of ``Health``. A run that was stopped before its last step is not probed.

    It needs ``module.objective.teacher.encoder``, and ``describe()``, ``probe_tasks()`` and
    ``health_batches(n)`` of the trainer's datamodule.

    Args:
        folder: the run's folder.
        random: makes the encoder that this run started from, without training.
        every: also probe the teacher at logged steps that are multiples of this, as
            ``probe_<task>_<metric>`` in the metrics; 0 for the end only.
        samples: number of samples that the effective rank is computed on.
    """

    def __init__(
        self, folder: str | Path, random: Callable[[], Encoder], every: int = 0, samples: int = 256
    ) -> None:
        self.path, self.random = Path(folder) / "probe.json", random
        self.every, self.samples = every, samples
        self.last: dict[str, float] = {}

    def observe(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        if not self.every or trainer.global_step % self.every:
            return {}
        encoder, data = self._teacher(module), _data(trainer)
        with STOP.ending_at_once(trainer.world_size == 1):
            results = [probe(task, {"pretrained": encoder}) for task in data.probe_tasks()]
        return {
            f"probe_{r['task']}_{r['headline']}": r[r["headline"]]["pretrained"] for r in results
        }

    def receive(self, trainer: Trainer, module: LightningModule, values: dict[str, float]) -> None:
        """Keep the last numbers, for the report of a run without labels."""
        self.last = values

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Probe, print, write. In ``on_train_end`` the last checkpoint would not be saved yet."""
        if trainer.global_step < trainer.max_steps:
            return
        encoders = {"random": self._random(pl_module), "pretrained": self._teacher(pl_module)}
        if not trainer.is_global_zero:
            return
        data = _data(trainer)
        tasks, described = data.probe_tasks(), data.describe()
        results = [probe(task, encoders) for task in tasks]
        get_console().print(f"\nData: {described}", highlight=False, soft_wrap=True)
        for result in results:
            get_console().print(table(result), verdict(result), "", highlight=False)
        if results:
            report = results[0] | {"others": results[1:]}
        else:
            report = self._without_labels(data.health_batches(self.samples), encoders)
        report |= {"data": described, "step": trainer.global_step}
        ownership.confirm()
        with atomic(self.path) as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n")

    def _random(self, module: LightningModule) -> Encoder:
        """An untrained encoder, made without changing the random state of training."""
        with torch.random.fork_rng(devices=[]):
            return self.random().to(module.device).requires_grad_(False)

    def _teacher(self, module: LightningModule) -> Encoder:
        """A full copy of the teacher. Under FSDP this is a collective: every rank must call it."""
        teacher: Encoder = module.objective.teacher.encoder  # type: ignore[union-attr, assignment]
        encoder = self._random(module)
        encoder.load_state_dict({name: full_tensor(t) for name, t in teacher.state_dict().items()})
        return encoder

    def _without_labels(self, sample: list[Batch], encoders: dict[str, Encoder]) -> dict[str, Any]:
        ranks = {name: effective_rank(features(e, sample)[0]) for name, e in encoders.items()}
        title, columns = "No labels, so no probe", ("random encoder", "pretrained encoder")
        out = Table("measure", *columns, title=title)
        measure = f"effective rank, of {encoders['random'].width}"
        out.add_row(measure, *(f"{rank:.1f}" for rank in ranks.values()))
        known = {name: self.last[name] for name in HEALTH if name in self.last}
        for name, value in known.items():
            out.add_row(name, "", f"{value:.3f}")
        get_console().print(out)
        return {"effective_rank": ranks} | known


def _data(trainer: Trainer) -> Any:
    """The datamodule. Its class is in a package that ``d2v_pretrain`` must not import."""
    return trainer.datamodule  # type: ignore[attr-defined]
