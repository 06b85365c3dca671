"""Fine-tuning's number: accuracy on the test items, at the end and on request during the run;
``finetune.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from rich import get_console

from d2v_pretrain.checkpoint.file import write_text
from d2v_pretrain.training.callbacks.metrics import Meter


class Accuracy(Meter):
    """Tests when the run has reached its last step; prints accuracy beside chance and writes
    ``finetune.json``.

    The datamodule's one probe task says what is tested; every rank tests all of it. A run that was
    stopped early, to go on later, is not tested.

    Args:
        folder: the run's folder.
        every: also test on logged steps that divide by this, into ``test_accuracy`` of the metrics;
            0 for the end only.
    """

    def __init__(self, folder: str, every: int = 0) -> None:
        self.path, self.every = Path(folder) / "finetune.json", every

    def observe(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        """The accuracy, on steps that are due."""
        if not self.every or trainer.global_step % self.every:
            return {}
        return {"test_accuracy": test(trainer, module)["accuracy"]}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Test, print, write. Not in ``on_train_end``: there the last checkpoint is not saved
        yet."""
        if trainer.global_step < trainer.max_steps:
            return
        report = test(trainer, pl_module) | {"step": trainer.global_step}
        if trainer.is_global_zero:
            line = "Fine-tuned on '{task}': accuracy {accuracy:.3f} on {test:,} unseen examples, chance {chance:.3f} "
            line += "({classes} classes, {note})"
            get_console().print(line.format(**report), highlight=False, soft_wrap=True)
            write_text(json.dumps(report, indent=2) + "\n", self.path)


@torch.no_grad()
def test(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Test the module on the one task of the trainer's datamodule.

    Returns:
        ``accuracy``, ``chance`` (share of the largest class), ``test`` examples and ``task,
        classes, note``.
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
    facts = {name: getattr(task, name) for name in ("classes", "note")}
    return {
        "task": task.name,
        "accuracy": right / total,
        "chance": int(counts.max()) / total,
        "test": total,
    } | facts
