"""Saving: writes checkpoints every N steps or minutes, and when training ends for any reason."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from d2v_pretrain.atomic_files import atomic
from d2v_pretrain.checkpoint.lightning import AtomicCheckpointIO
from d2v_pretrain.training.callbacks.bad_steps import BadSteps
from d2v_pretrain.training.callbacks.metrics import Meter
from d2v_pretrain.training.ranks import Agreement
from d2v_pretrain.training.signals import STOP

# In the run's folder: the step of the last checkpoint that was saved. A run whose checkpoints are
# gone does not start over in its folder.
SAVED = "saved.json"


class Saving(Checkpoint, Meter):
    """Writes ``step=N.ckpt`` after an optimizer step, and makes ``last.ckpt`` a hard link to it.

    A save that is due after a bad step (see ``BadSteps``) is made after the next good one, so that
    bad checkpoints do not displace good ones. Training that ends after a bad step is not saved
    then, unless it was the run's last step: the next start repeats the steps since the last save.

    Lightning's ModelCheckpoint is not used: it may save between the micro-batches of a step, whose
    gradients are then lost; it writes ``last`` a second time; and it cannot save by steps and by
    minutes at once. ``io`` is the plugin that writes the files, for the trainer.

    Args:
        folder: where checkpoints are written.
        every_steps: save at multiples of this; None for never.
        every_minutes: also save when this long has passed since the last save; None for never.
        keep_last: number of the newest ``step=N.ckpt`` that are kept.
        keep_every: checkpoints of steps that are multiples of this are kept too; None keeps no
        others.
        best: name of a metric in ``metrics.jsonl``, for example ``effective_rank`` or
            ``loss_relative``. ``best.ckpt`` is the checkpoint that was saved when the metric was
            best: smallest if its name contains "loss", else largest. None for no ``best.ckpt``.
        asynchronous: see ``AtomicCheckpointIO``.
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
        self.due = False
        self.last = time.monotonic()
        self.score: float | None = None  # the newest since the last save; larger is better
        self.record = float("-inf")
        self.is_best = False

    def receive(self, trainer: Trainer, module: LightningModule, values: dict[str, float]) -> None:
        if self.best in values and math.isfinite(value := values[self.best]):
            self.score = -value if "loss" in self.best else value

    def state_dict(self) -> dict[str, Any]:
        return {"record": self.record}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.record = state_dict["record"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and allocate memory. The checkpoint that this run continues from is not
        saved again.
        """
        if self.io.asynchronous:
            state = trainer.strategy.lightning_module_state_dict()  # under FSDP a collective
            if trainer.is_global_zero:
                self.io.reserve(state)
        self.seen = self.saved = trainer.global_step
        self.last, self.agreement = time.monotonic(), Agreement(trainer.strategy)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save if this micro-batch ended a good step and a save is due."""
        step = trainer.global_step
        if step == self.seen:
            return
        self.seen = step
        late = self.agreement.ask(time.monotonic() - self.last >= self.pause)
        self.due |= late or (self.every_steps is not None and step % self.every_steps == 0)
        if self.due and not _in_doubt(trainer):
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step unless it is saved already, and wait until it is on disk.

        Raises:
            Stopped: the run has made its last step, and was told to stop. What is left, a probe,
                the next start does.
        """
        self.agreement.settle()
        done = trainer.global_step >= trainer.max_steps
        if trainer.global_step > self.saved and (done or not _in_doubt(trainer)):
            self._save(trainer)
        self.io.wait()
        if done and trainer.is_global_zero:
            STOP.switch(at_once=True)

    def _save(self, trainer: Trainer) -> None:
        self.io.wait()  # the last write still reads is_best at its end
        self.is_best = self.score is not None and self.score > self.record
        if self.score is not None:
            self.record = max(self.record, self.score)
        self.score = None
        trainer.save_checkpoint(self.folder / f"step={trainer.global_step}.ckpt")
        self.saved, self.last, self.due = trainer.global_step, time.monotonic(), False

    def _keep(self, path: Path) -> None:
        """After a file was written, note its step, link its other names to it and delete older
        files."""
        with atomic(self.folder.parent / SAVED) as temporary:
            temporary.write_text(json.dumps({"step": _step(path)}) + "\n")
        point(path.with_name("last.ckpt"), path)
        if self.is_best:
            point(path.with_name("best.ckpt"), path)
        for old in sorted(self.folder.glob("step=*.ckpt"), key=_step)[: -self.keep_last]:
            if self.keep_every is None or _step(old) % self.keep_every:
                old.unlink()


def _in_doubt(trainer: Trainer) -> bool:
    watches = [c for c in trainer.callbacks if isinstance(c, BadSteps)]  # type: ignore[attr-defined]
    return any(watch.in_doubt for watch in watches)


def point(name: Path, path: Path) -> None:
    """Make ``name`` another name of the file ``path`` atomically: a hard link, or a copy where the
    file system has no hard links.
    """
    with atomic(name, name.with_suffix(".tmp")) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def _step(path: Path) -> int:
    digits = path.stem.partition("=")[2]
    return int(digits) if digits.isdigit() else -1
