"""A request to stop: signals set a flag that training looks at between steps; the exit code says
"not done yet"."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

EXIT_REQUEUE = 85  # exit code: stopped on request, everything saved, the same command goes on
_SIGNALS = {
    signal.SIGUSR1: "SIGUSR1",
    signal.SIGUSR2: "SIGUSR2",
    signal.SIGTERM: "SIGTERM",
    signal.SIGINT: "Ctrl-C",
}


class StopRequest:
    """Set by the first SIGUSR1, SIGUSR2, SIGTERM or SIGINT after ``install``; a second SIGINT quits
    at once.

    Handlers do nothing else: Slurm signals every process of a step, forked data-loading workers
    included, and a save in a handler would catch training in the middle of an update."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.before: dict[int, Any] = {}

    def install(self) -> None:
        """Take the signals over, from Python's main thread; who had them before is kept for
        ``hand_over``."""
        self.reason = None
        for number in _SIGNALS:
            self.before.setdefault(number, signal.signal(number, self._set))

    def uninstall(self) -> None:
        """Give the signals back, as after a run that came to its end (a notebook goes on)."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def hand_over(self) -> None:
        """Call the SIGUSR2 handler that was there before: under submitit it pickles the job,
        requeues it and exits."""
        handler = self.before.get(signal.SIGUSR2)
        if self.reason == _SIGNALS[signal.SIGUSR2] and callable(handler):
            handler(signal.SIGUSR2, None)

    def _set(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason == _SIGNALS[signal.SIGINT]:
            os._exit(128 + number)
        self.reason = _SIGNALS[signal.Signals(number)]


STOP = StopRequest()
