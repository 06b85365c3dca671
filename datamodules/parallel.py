"""spread(): many tasks over several processes, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from multiprocessing.sharedctypes import Synchronized
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

Task = TypeVar("Task")
Result = TypeVar("Result")
_SPAWN = multiprocessing.get_context("spawn")  # a fork would inherit the locks of threads
_AHEAD = 2  # tasks handed out per process; few, as their arguments may be large
_QUIET = 30  # seconds between two lines of progress if there is no terminal
_done: Synchronized[int] | None = None


def advance(amount: int = 1) -> None:
    """Add to the progress bar, from within a task."""
    if _done is not None:
        with _done.get_lock():
            _done.value += amount


def spread(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    processes: int,
    total: int,
    title: str,
    unit: str,
    scale: int = 1,
    found: int = 0,
) -> Generator[Result]:
    """The result of each task, in the order in which they end.

    Args:
        function: picklable; it calls ``advance``.
        tasks: arguments of ``function``, one for each call.
        processes: number of processes; 1 works in this process.
        total: what the calls of ``advance`` sum up to.
        title, unit: text for the progress bar.
        scale: amount of ``advance`` that is shown as one unit.
        found: part of ``total`` that was done before this start.
    """
    counter: Synchronized[int] = _SPAWN.Value("q", found)
    with _bar(title, unit, counter, total, found, scale):
        if processes == 1 or len(tasks) < 2:
            yield from _here(function, tasks, counter)
        else:
            yield from _pool(function, tasks, min(processes, len(tasks)), counter)


def _here(
    function: Callable[[Task], Result], tasks: Sequence[Task], counter: Synchronized[int]
) -> Iterator[Result]:
    global _done
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a process of the pool: threads change the order of sums
    _done = counter
    try:
        yield from map(function, tasks)
    finally:
        _done = None
        torch.set_num_threads(threads)


def _pool(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    processes: int,
    counter: Synchronized[int],
) -> Iterator[Result]:
    waiting, running = iter(tasks), set[Future[Result]]()
    pool = ProcessPoolExecutor(processes, _SPAWN, _start, (counter,))
    try:
        while True:
            free = processes * _AHEAD - len(running)
            running |= {pool.submit(function, task) for task in islice(waiting, free)}
            if not running:
                return
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (one.result() for one in ended)
    except BaseException:  # Ctrl-C, or a task failed: the next start repeats unfinished tasks
        for process in list(pool._processes.values()):
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start(counter: Synchronized[int]) -> None:
    """Set up a process of the pool: one thread, and no reaction to signals.

    The process exits when its parent is killed; otherwise it would wait for work for ever.
    """
    global _done
    _done = counter
    torch.set_num_threads(1)
    # A request to stop reaches all processes of a job; the parent decides.
    for number in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, number), signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


@contextmanager
def _bar(
    title: str, unit: str, counter: Synchronized[int], total: int, found: int, scale: int
) -> Iterator[None]:
    """Show progress on standard error: a bar on a terminal, a line every half minute elsewhere."""
    stop, began = threading.Event(), time.monotonic()

    def state() -> str:
        done = counter.value / scale
        rate = (counter.value - found) / scale / (time.monotonic() - began + 1e-9)
        speed = f"{rate:,.{1 if rate < 10 else 0}f} {unit}/s"
        return f"{done:,.0f} of {total / scale:,.0f} {unit}, {speed}"

    def lines() -> None:
        while not stop.wait(_QUIET):
            print(f"{title}: {state()}", file=sys.stderr, flush=True)

    def draw() -> None:
        columns = (
            TextColumn(title),
            BarColumn(),
            TextColumn("{task.description}, left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            bar = progress.add_task(state(), total=total, completed=found)
            ended = False
            while not ended:
                ended = stop.wait(0.25)
                progress.update(bar, completed=counter.value, description=state())

    watch = threading.Thread(target=draw if sys.stderr.isatty() else lines, daemon=True)
    watch.start()
    try:
        yield
    finally:
        stop.set()
        watch.join()
