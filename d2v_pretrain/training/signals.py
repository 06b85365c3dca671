"""Requests to stop: signals set a flag that training reads between steps, and the exit code says
that the run is not finished. As long as there is nothing to save, they end the process at once.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

EXIT_REQUEUE = 85  # exit code: stopped on request and saved; the same command continues the run
GRACE = 5.0  # seconds for the main thread to end by itself when there is nothing to save
_SIGNALS = {
    signal.SIGUSR1: "SIGUSR1",
    signal.SIGUSR2: "SIGUSR2",
    signal.SIGTERM: "SIGTERM",
    signal.SIGHUP: "SIGHUP",
    signal.SIGINT: "Ctrl-C",
}


class Stopped(BaseException):
    """A request to stop came while there was nothing to save."""


class StopRequest:
    """Set by the first SIGUSR1, SIGUSR2, SIGTERM, SIGHUP or SIGINT after ``install``. A second
    SIGINT ends the process at once.

    While a run trains, the handlers do nothing else. Slurm signals every process of a step,
    data-loading workers included, and a save within a handler could interrupt an optimizer step.
    Before the first step and after the last save there is nothing to save: ``at_once`` is true, and
    the first signal raises ``Stopped`` in the main thread. So it is in a probe on the way.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.at_once, self.by_force = False, True
        self.before: dict[int, Any] = {}
        self.ends: list[Callable[[], object]] = []  # called before the process is ended by force
        self.watching = False

    def install(self, at_once: bool = False) -> None:
        """Install the handlers, in Python's main thread; the old ones are kept."""
        self.reason, self.ends = None, []
        self.switch(at_once)
        for number in _SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # started with nohup: the run is to outlive its terminal
            self.before.setdefault(number, signal.signal(number, self._set))

    def watch(self) -> None:
        """End the process by force if it is still there a few seconds after a signal that should
        have ended it at once.

        The main thread may be waiting within a library, for example for another rank, where Python
        runs no handlers; or threads of a library may keep the process alive. Not for a notebook,
        whose process is not ours.
        """
        if self.watching:
            return
        self.watching = True
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        # A forked data-loading worker must not report its signals to this process.
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        threading.Thread(target=self._watch, args=(reader, writer), daemon=True).start()

    def switch(self, at_once: bool, by_force: bool = True) -> None:
        """Let the following signals end the process at once, or set the flag only.

        Args:
            at_once: raise ``Stopped`` in the main thread.
            by_force: and end the process if that does not; see ``watch``.

        Raises:
            Stopped: they are to end it at once, and one has come before.
        """
        self.at_once, self.by_force = at_once, by_force
        if at_once and self.reason is not None:
            raise Stopped

    @contextmanager
    def ending_at_once(self, allowed: bool) -> Iterator[None]:
        """Let signals end the block, which can be repeated later, by raising ``Stopped``; also one
        that came before the block. Not ``allowed`` where other ranks would wait for this one.
        """
        try:
            self.switch(at_once=allowed, by_force=False)
            yield
        finally:
            self.switch(at_once=False)

    def uninstall(self) -> None:
        """Restore the old handlers after a run: in a notebook the process goes on."""
        self.reason, self.at_once = None, False
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
        first, self.reason = self.reason is None, _SIGNALS[signal.Signals(number)]
        if first and self.at_once:
            raise Stopped

    def _watch(self, reader: socket.socket, writer: socket.socket) -> None:
        while numbers := reader.recv(64):
            time.sleep(GRACE)
            if self.at_once and self.by_force and not set(numbers).isdisjoint(_SIGNALS):
                for end in self.ends:
                    end()
                os._exit(EXIT_REQUEUE)


STOP = StopRequest()
