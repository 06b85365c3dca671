"""Preemption: ends training between two steps after a signal on any rank, or after max_hours."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from d2v_pretrain.training.internals import disable_sigterm_handling
from d2v_pretrain.training.ranks import Agreement
from d2v_pretrain.training.signals import STOP


class Preemption(Callback):
    """Ends ``fit`` when any rank got a signal or ``max_hours`` are over; ``Saving`` then writes the
    checkpoint.

    ``stopped`` says why training ended before its last step; it is None if it did not.

    Args:
        max_hours: limit, counted from the start of training in this process; None for no limit.
    """

    def __init__(self, max_hours: float | None) -> None:
        self.limit = float("inf") if max_hours is None else 3600 * max_hours
        self.stopped: str | None = None
        self.seen = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        disable_sigterm_handling(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock. If a signal came during the set-up, stop now, with nothing to save."""
        self.start, self.seen = time.monotonic(), trainer.global_step
        self.agreement = Agreement(trainer.strategy)
        if self.agreement.ask(self._due()) or self.agreement.settle():
            self._stop(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """At the end of a step, ask all ranks. With several ranks the answer comes one step
        later.
        """
        if trainer.global_step == self.seen:
            return
        self.seen = trainer.global_step
        if self.agreement.ask(self._due()):
            self._stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Receive the last answer, so that no message stays unread."""
        self.agreement.settle()

    def _due(self) -> bool:
        return STOP.reason is not None or time.monotonic() - self.start >= self.limit

    def _stop(self, trainer: Trainer) -> None:
        if trainer.global_step < trainer.max_steps:
            trainer.should_stop = True
            over = time.monotonic() - self.start >= self.limit
            other = "max_hours is over" if over else "another rank was told to stop"
            self.stopped = STOP.reason or other
