"""Preemption: ends training between two steps after a signal on any rank, or after max_hours."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from d2v_pretrain.checkpoint import ownership
from d2v_pretrain.training.internals import disable_sigterm_handling
from d2v_pretrain.training.ranks import Agreement, check_same_step
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
        """Until the first step a signal ends the process at once. Several ranks know each other
        from here on, and must agree instead.
        """
        disable_sigterm_handling(trainer)
        if trainer.world_size > 1:
            STOP.switch(at_once=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock. If a signal came during the set-up, stop now, with nothing to save.

        Raises:
            ConfigError: the ranks go on from different checkpoints.
        """
        check_same_step(trainer.global_step)
        self.start, self.seen = time.monotonic(), trainer.global_step
        self.agreement = Agreement(trainer.strategy)
        if self.agreement.ask(self._due()) or self.agreement.settle():
            self._stop(trainer)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """From the first step on there is something to save."""
        STOP.switch(at_once=False)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """At the end of a step, ask all ranks. With several ranks the answer comes one step
        later.

        Raises:
            ConfigError: another process has taken over the run's folder.
        """
        if trainer.global_step == self.seen:
            return
        self.seen = trainer.global_step
        if ownership.is_lost():
            ownership.confirm()
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
