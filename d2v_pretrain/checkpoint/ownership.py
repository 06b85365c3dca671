"""Ownership: at most one job at a time writes into a run's folder. ``owner.json`` there names its
first process.

The file is created by a hard link, which only one of several processes can make, also on NFS. The
owner touches it every few seconds. A process that finds the owner dead does not delete its file.
It creates the *successor* of that file, whose name holds the dead owner's random id. Of several
processes that find the same dead owner, one can create that name; it then renames its own file to
``owner.json``. A process that comes too late, with a name that no longer follows from
``owner.json``, sees that afterwards and withdraws.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from d2v_pretrain.checkpoint.owner import Owner, is_first, read, this_machine, this_process
from d2v_pretrain.errors import ConfigError

FILE = "owner.json"
HEARTBEAT = 5.0  # seconds between two touches of the file
STALE = 60.0  # seconds without a touch after which an owner on another machine counts as dead
PATIENCE = 3.0  # seconds that a start watches another owner before it is refused
WAIT = 600.0  # seconds that a start waits for an owner that is about to end
LOOK = 0.2  # seconds between two looks at the file while waiting
VARIABLE = "D2V_PRETRAIN_OWNER"  # the owner's id, for the processes that Lightning starts


class Lock:
    """The lock of one folder, and how to get it.

    Args:
        folder: the run's folder; made if it is missing.
        stopping: says whether this process was told to stop.
    """

    def __init__(self, folder: Path, stopping: Callable[[], bool] = lambda: False) -> None:
        self.folder, self.stopping, self.me = folder.absolute(), stopping, this_process()
        self.root = self.folder / FILE
        self.draft = self.folder / f".owner.{self.me.id}.tmp"
        self.made: list[Path] = []
        self.file: int | None = None  # open while this process is the owner
        self.lost = False
        self.ended = threading.Event()
        self.beating = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def take(self) -> None:
        """Become the owner, after waiting for one that is about to end.

        Raises:
            ConfigError: another process owns the folder and does not end.
            OSError: the folder cannot be written.
        """
        self.made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._wait(first=True)
            self._sweep()
            self.beating.start()
        finally:
            self.draft.unlink(missing_ok=True)
            if self.file is None:
                self._remove_made()

    def join(self) -> None:
        """On the other ranks of a job: wait until rank 0 of the same launch is the owner. Before
        that, an earlier job may still write the checkpoint that all ranks are to read.

        Raises:
            ConfigError: see ``take``; rank 0 does not become the owner.
        """
        if not self.me.launch and VARIABLE not in os.environ:
            return  # an unknown launcher: nothing tells the processes of this launch from others
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._wait(first=False)
        finally:
            self.draft.unlink(missing_ok=True)

    def release(self) -> None:
        """Remove the file, unless another process has taken it over, and the folders that were made
        for it and stayed empty.
        """
        self.ended.set()
        if self.file is None:
            return
        if self.beating.is_alive():
            self.beating.join(HEARTBEAT)
        if self.is_mine():
            self.root.unlink(missing_ok=True)
            self._remove_made()
        os.close(self.file)
        self.file = None

    def is_mine(self) -> bool:
        """Whether this process is the owner, by what is on the disk now."""
        owner, _, _ = self._newest()
        return owner is not None and owner.id == self.me.id

    def confirm(self) -> None:
        """See the function ``confirm``.

        Raises:
            ConfigError: another process has taken the folder over, or ``owner.json`` is gone.
        """
        if not self.lost and self.is_mine():
            return
        self.lost = True
        owner, _, _ = self._newest()
        rule = "no longer belongs to this process, which has stopped without writing: "
        if owner is None:
            rule += f"{FILE} is gone; was the folder moved or deleted?"
            raise ConfigError("folder", self.folder, rule)
        rule += f"{owner} has taken it over since {owner.since}, because this process gave no sign "
        rule += f"of life for {STALE:.0f} s (was it suspended, or its disk not to be reached?)"
        raise ConfigError("folder", self.folder, rule, "let the other one go on")

    def _wait(self, first: bool) -> None:
        """Look again and again, until this process is the owner or, if it is not the ``first`` of
        its job, until the first one is.
        """
        mates = set() if first else {os.environ.get(VARIABLE, ""), self.me.launch} - {""}
        began, told = time.monotonic(), False
        while True:
            owner, file, successor = self._newest()
            if owner is not None and {owner.id, owner.launch} & mates:
                return
            free = owner is None or self._is_dead(owner, file)
            if free and first:
                if self._create(successor):
                    return
                continue
            ends = owner is None or free or owner.stopping or owner.job == self.me.job != ""
            if time.monotonic() - began > (WAIT if ends else PATIENCE):
                raise self._refusal(owner, file)
            if ends and first and not told:
                told = True
                minutes = f"up to {WAIT / 60:.0f} minutes"
                print(f"waiting for {owner}, which uses {self.folder}, {minutes}", flush=True)
            time.sleep(LOOK)

    def _newest(self) -> tuple[Owner | None, Path, Path]:
        """The owner, its file, and where the file of its successor would be."""
        owner, file, successor = None, self.root, self.root
        while (found := read(successor)) is not None:
            owner, file = found, successor
            successor = self.folder / f".owner.{found.id}.json"
        return owner, file, successor

    def _create(self, place: Path) -> bool:
        """Try to become the owner by creating ``place``; False if another process was faster."""
        content = json.dumps(asdict(self.me))
        self.draft.write_text(content)
        # On NFS an error may also mean that the link was made, but the answer got lost: so it is
        # not the call that decides, but what is there afterwards.
        try:
            os.link(self.draft, place)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            with suppress(FileExistsError), place.open("x") as file:
                file.write(content)
        if not self.is_mine():
            late = read(place)
            if late is not None and late.id == self.me.id:
                place.unlink(missing_ok=True)
            return False
        self.file = os.open(place, os.O_RDWR)
        if place != self.root:
            os.replace(place, self.root)
        return True

    def _is_dead(self, owner: Owner, file: Path) -> bool:
        """On this machine: its process has ended. Elsewhere: it gives no sign of life."""
        if owner.machine == this_machine():
            return not owner.runs()
        return self._silence(file) > STALE

    def _silence(self, file: Path) -> float:
        """Seconds since the last heartbeat by the clock of the disk: clocks of machines differ."""
        self.draft.touch()
        try:
            return self.draft.stat().st_mtime - file.stat().st_mtime
        except FileNotFoundError:  # the owner has changed just now
            return 0.0

    def _beat(self) -> None:
        """Until the end: tell others when this process was told to stop, touch the file every few
        seconds, and look whether it is still ours.
        """
        assert self.file is not None
        last, told = 0.0, False
        while not self.ended.wait(0.5) and not self.lost:
            try:
                if self.stopping() and not told:
                    content = json.dumps(asdict(self.me) | {"stopping": True})
                    os.pwrite(self.file, f"{content} ".encode(), 0)  # as long as it was with false
                    told = True
                if time.monotonic() - last >= HEARTBEAT:
                    last = time.monotonic()
                    os.utime(self.file)
                    self.lost = not self.is_mine()
            except OSError:
                continue  # the disk does not answer; the next beat tries again

    def _sweep(self) -> None:
        """Delete files that killed processes have left behind."""
        for path in self.folder.glob(".owner.*"):
            with suppress(FileNotFoundError):
                old = path.stat().st_mtime < self.root.stat().st_mtime - STALE
                # Every .json here has lost its place behind owner.json; a draft may be in use.
                if path.suffix == ".json" or old:
                    path.unlink()

    def _remove_made(self) -> None:
        with suppress(OSError):  # one that is not empty is needed
            for path in self.made:
                path.rmdir()

    def _refusal(self, owner: Owner | None, file: Path) -> ConfigError:
        if owner is None:
            rule = f"was not taken by rank 0 of this job within {WAIT / 60:.0f} minutes"
            return ConfigError("folder", self.folder, rule, "look at the messages of rank 0")
        rule = f"is in use: {owner} trains there since {owner.since}"
        elsewhere = "" if owner.machine == this_machine() else f" on {owner.host}"
        remedy = f"type name=… for another run, or stop that one (kill {owner.pid}{elsewhere}) and "
        remedy += "type the same command again"
        if elsewhere and (silence := self._silence(file)) > 2 * HEARTBEAT:
            rule += f", but has given no sign of life for {silence:.0f} s"
            remedy += f"; from {STALE:.0f} s on it counts as dead"
        return ConfigError("folder", self.folder, rule, remedy)


_held: Lock | None = None  # on rank 0
_joining: Lock | None = None  # on the other ranks


@contextmanager
def owned(folder: Path, stopping: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Own a run's folder for the length of the block. Rank 0 takes the lock for the whole job; the
    other ranks call ``join`` within the block.

    Args:
        folder, stopping: see ``Lock``.

    Raises:
        ConfigError: another job owns the folder and does not end.
        OSError: the folder cannot be written.
    """
    global _held, _joining
    lock = Lock(folder, stopping)
    try:
        if is_first(os.environ):
            _held = lock
            lock.take()
            os.environ[VARIABLE] = lock.me.id
        else:
            _joining = lock
        yield
    finally:
        if _joining is lock:
            _joining = None
        else:
            release()


def join() -> None:
    """Called by every rank before it looks for a checkpoint. See ``Lock.join``."""
    if _joining is not None:
        _joining.join()


def release() -> None:
    """Give up what this process owns, if anything."""
    global _held
    lock, _held = _held, None
    if lock is not None and lock.me.pid == os.getpid():  # and not a fork of it
        os.environ.pop(VARIABLE, None)
        lock.release()


def confirm() -> None:
    """Called before something is written into the run's folder: a few file reads.

    Raises:
        ConfigError: another process has taken the folder over.
    """
    if _held is not None:
        _held.confirm()


def is_lost() -> bool:
    """Whether the heartbeat has found that another process owns the folder; reads no file."""
    return _held is not None and _held.lost
