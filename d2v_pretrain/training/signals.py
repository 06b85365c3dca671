"""Requests to stop: signals set a flag that training reads between steps, and the exit code says
that the run is not finished.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

EXIT_REQUEUE = 85  # exit code: stopped on request and saved; the same command continues the run
_SIGNALS = {
    signal.SIGUSR1: "SIGUSR1",
    signal.SIGUSR2: "SIGUSR2",
    signal.SIGTERM: "SIGTERM",
    signal.SIGINT: "Ctrl-C",
}


class StopRequest:
    """Set by the first SIGUSR1, SIGUSR2, SIGTERM or SIGINT after ``install``. A second SIGINT ends
    the process at once.

    The handlers do nothing else. Slurm signals every process of a step, data-loading workers
    included, and a save within a handler could interrupt an optimizer step.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.before: dict[int, Any] = {}

    def install(self) -> None:
        """Install the handlers, in Python's main thread; the old ones are kept."""
        self.reason = None
        for number in _SIGNALS:
            self.before.setdefault(number, signal.signal(number, self._set))

    def uninstall(self) -> None:
        """Restore the old handlers after a run: in a notebook the process goes on."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def hand_over(self) -> None:
        """After a SIGUSR2, call the handler that was there before. Under submitit it pickles the
        job, requeues it and exits.
        """
        handler = self.before.get(signal.SIGUSR2)
        if self.reason == _SIGNALS[signal.SIGUSR2] and callable(handler):
            handler(signal.SIGUSR2, None)

    def _set(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason == _SIGNALS[signal.SIGINT]:
            os._exit(128 + number)
        self.reason = _SIGNALS[signal.Signals(number)]


STOP = StopRequest()
