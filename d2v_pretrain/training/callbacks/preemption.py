"""Stopping in time: a signal on any rank, or the end of the hours, ends training at the next step
boundary."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from d2v_pretrain.training.ranks import Agreement
from d2v_pretrain.training.signals import STOP


class Preemption(Callback):
    """Ends ``fit`` when any rank was signalled or the hours are over; ``Saving`` then writes the
    checkpoint.

    Lightning has a protocol of its own: a SIGTERM handler that calls a collective wherever it finds
    the process, and with several ranks a broadcast and a wait for the device before every batch.
    Both are switched off here; see lightning#21406 and #21487. They are private names, which
    tests/resume pins.

    Args:
        max_hours: stop after so long; None for no limit. Counted from the start of training in this
            process.

    ``stopped`` says why training ended before its last step, or is None.
    """

    def __init__(self, max_hours: float | None) -> None:
        self.limit = float("inf") if max_hours is None else 3600 * max_hours
        self.stopped: str | None = None
        self.seen = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep Lightning's handlers and its broadcast out."""
        trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; a signal that came while the run was being set up is met here, with
        nothing to save."""
        self.start, self.seen, self.agreement = (
            time.monotonic(),
            trainer.global_step,
            Agreement(trainer.strategy),
        )
        if self.agreement.ask(self._due()) or self.agreement.settle():
            self._stop(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Ask all ranks if this micro-batch ended a step; with several ranks the answer comes one
        step later."""
        if trainer.global_step == self.seen:
            return
        self.seen = trainer.global_step
        if self.agreement.ask(self._due()):
            self._stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave no message under way."""
        self.agreement.settle()

    def _due(self) -> bool:
        return STOP.reason is not None or time.monotonic() - self.start >= self.limit

    def _stop(self, trainer: Trainer) -> None:
        if trainer.global_step < trainer.max_steps:
            trainer.should_stop = True
            over = time.monotonic() - self.start >= self.limit
            self.stopped = STOP.reason or (
                "max_hours is over" if over else "another rank was told to stop"
            )


def _nothing() -> None:
    pass
