"""When to save: every so many steps or minutes, and at the end, whatever has brought it about."""

from __future__ import annotations

import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from d2v_pretrain.checkpoint.lightning import AtomicCheckpointIO
from d2v_pretrain.training.callbacks.metrics import Meter
from d2v_pretrain.training.ranks import Agreement


class Saving(Checkpoint, Meter):
    """Writes ``step=N.ckpt`` and points ``last.ckpt`` at it by a hard link, at step boundaries
    only.

    Lightning's ModelCheckpoint may save between the micro-batches of a step (their gradients are
    lost), writes ``last`` a second time, and cannot do steps and minutes at once.

    Args:
        folder: of the checkpoints.
        every_steps, every_minutes: None for never; each counts for itself.
        keep_last: so many ``step=N.ckpt`` stay.
        keep_every: those of steps that divide by it stay too; None for no others.
        best: a number of ``metrics.jsonl`` that needs no labels (``effective_rank``,
            ``loss_relative``); ``best.ckpt`` is the checkpoint saved when it was best so far. Of
            what is named loss less is better, else more. None for no ``best.ckpt``.
        asynchronous: see ``AtomicCheckpointIO``.

    ``io`` is the plugin that writes, for the trainer.
    """

    def __init__(
        self,
        folder: str | Path,
        every_steps: int | None,
        every_minutes: float | None,
        keep_last: int,
        keep_every: int | None,
        best: str | None = None,
        asynchronous: bool = False,
    ) -> None:
        super().__init__()
        self.folder, self.every_steps = Path(folder), every_steps
        self.keep_last, self.keep_every, self.best = keep_last, keep_every, best
        self.io = AtomicCheckpointIO(asynchronous, self._keep)
        self.pause = float("inf") if every_minutes is None else 60 * every_minutes
        self.seen = self.saved = 0
        self.last = time.monotonic()
        self.score: float | None = None  # the newest since the last save, larger is better
        self.record = float("-inf")
        self.is_best = False

    def receive(self, trainer: Trainer, module: LightningModule, values: dict[str, float]) -> None:
        """Keep the score of this step, if it has one."""
        if self.best in values and math.isfinite(value := values[self.best]):
            self.score = -value if "loss" in self.best else value

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return {"record": self.record}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See ``state_dict``."""
        self.record = state_dict["record"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, take memory; what this run resumed from need not be saved again."""
        if self.io.asynchronous:
            state = (
                trainer.strategy.lightning_module_state_dict()
            )  # by all ranks, if each has a share of it
            if trainer.is_global_zero:
                self.io.reserve(state)
        self.seen = self.saved = trainer.global_step
        self.last, self.agreement = time.monotonic(), Agreement(trainer.strategy)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save if this micro-batch ended a step and it is time."""
        step = trainer.global_step
        if step == self.seen:
            return
        self.seen = step
        late = self.agreement.ask(time.monotonic() - self.last >= self.pause)
        if late or (self.every_steps is not None and step % self.every_steps == 0):
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end, unless it has just been; wait until it is on disk."""
        self.agreement.settle()
        if trainer.global_step > self.saved:
            self._save(trainer)
        self.io.wait()

    def _save(self, trainer: Trainer) -> None:
        self.io.wait()  # the file before this one looks at is_best
        self.is_best = self.score is not None and self.score > self.record
        if self.is_best:
            assert self.score is not None
            self.record = self.score
        self.score = None
        trainer.save_checkpoint(self.folder / f"step={trainer.global_step}.ckpt")
        self.saved, self.last = trainer.global_step, time.monotonic()

    def _keep(self, path: Path) -> None:
        """Once a file is whole: its other names, and which older ones go."""
        point(path.with_name("last.ckpt"), path)
        if self.is_best:
            point(path.with_name("best.ckpt"), path)
        for old in sorted(self.folder.glob("step=*.ckpt"), key=_step)[: -self.keep_last]:
            if self.keep_every is None or _step(old) % self.keep_every:
                old.unlink()


def point(name: Path, path: Path) -> None:
    """Make ``name`` another name of the file ``path``, at once; a copy where the file system has no
    hard links."""
    temporary = name.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    os.replace(temporary, name)


def _step(path: Path) -> int:
    digits = path.stem.partition("=")[2]
    return int(digits) if digits.isdigit() else -1
