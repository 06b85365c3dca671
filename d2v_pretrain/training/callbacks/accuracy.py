"""Accuracy: tests a fine-tuned classifier and writes ``finetune.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from d2v_pretrain.atomic_files import atomic
from d2v_pretrain.checkpoint import ownership
from d2v_pretrain.training.callbacks.metrics import Meter
from d2v_pretrain.training.log import log
from d2v_pretrain.training.signals import STOP


class Accuracy(Meter):
    """Tests the classifier after the run's last step, prints accuracy and chance, and writes
    ``finetune.json``.

    Test items are those of the datamodule's one probe task; every rank tests all of them. A run
    that was stopped before its last step is not tested.

    Args:
        folder: the run's folder.
        every: also test at logged steps that are multiples of this, as ``test_accuracy`` in the
            metrics; 0 for the end only.
    """

    def __init__(self, folder: str, every: int = 0) -> None:
        self.path, self.every = Path(folder) / "finetune.json", every

    def observe(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        if not self.every or trainer.global_step % self.every:
            return {}
        with STOP.ending_at_once(trainer.world_size == 1):
            return {"test_accuracy": test(trainer, module)["accuracy"]}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Test, print, write. In ``on_train_end`` the last checkpoint would not be saved yet."""
        if trainer.global_step < trainer.max_steps:
            return
        report = test(trainer, pl_module) | {"step": trainer.global_step}
        if trainer.is_global_zero:
            line = "Fine-tuned on '{task}': accuracy {accuracy:.3f} on {test:,} unseen examples, "
            line += "chance {chance:.3f} ({classes} classes, {note})"
            log(line.format(**report))
            ownership.confirm()
            with atomic(self.path) as temporary:
                temporary.write_text(json.dumps(report, indent=2) + "\n")


@torch.no_grad()
def test(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Test the module on the one probe task of the trainer's datamodule.

    Returns:
        ``accuracy``, ``chance`` (share of the largest class), ``test`` (number of examples), and
        ``task, classes, note``.
    """
    (task,) = trainer.datamodule.probe_tasks()  # type: ignore[attr-defined]
    objective, training = module.objective, module.training
    objective.eval()  # type: ignore[union-attr]
    right = 0
    labels: list[torch.Tensor] = []
    for batch in task.test:
        guess = objective(batch.to(module.device)).pred.argmax(1).cpu()  # type: ignore[operator]
        right += int((guess == batch.labels).sum())
        labels.append(batch.labels)
    objective.train(training)  # type: ignore[union-attr]
    counts = torch.cat(labels).bincount()
    total = int(counts.sum())
    return {
        "task": task.name,
        "accuracy": right / total,
        "chance": int(counts.max()) / total,
        "test": total,
        "classes": task.classes,
        "note": task.note,
    }
