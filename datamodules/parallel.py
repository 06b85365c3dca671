"""Many tasks over several processes, with a bar of progress; a killed parent leaves no process
behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

Task = TypeVar("Task")
Result = TypeVar("Result")
_SPAWN = multiprocessing.get_context("spawn")  # a fork would inherit the locks of threads
_AHEAD = 2  # tasks a process that are handed out: their arguments may be large
_QUIET = 30  # seconds between lines where there is no terminal
_done: Synchronized[int] | None = None


def advance(amount: int = 1) -> None:
    """Tell the bar, from within a task, that this much is done."""
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
        function: of a module, so that another process finds it; calls ``advance``.
        tasks: its arguments. processes: at work at once; 1 works in this one.
        total: that the calls of ``advance`` sum up to. found: of it that an earlier start has done.
        title, unit: for the bar. scale: what is one unit.
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
    torch.set_num_threads(
        1
    )  # as in a process of the pool: the order of a sum must not depend on it
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
            running |= {
                pool.submit(function, task)
                for task in _some(waiting, processes * _AHEAD - len(running))
            }
            if not running:
                return
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (one.result() for one in ended)
    except (
        BaseException
    ):  # Ctrl-C, or a task failed: what is half done is done again by the next start
        for process in list(pool._processes.values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _some(tasks: Iterator[Task], most: int) -> Iterable[Task]:
    return (task for _, task in zip(range(most), tasks))


def _start(counter: Synchronized[int]) -> None:
    """In each process: one thread, and an end when the parent is killed (it would wait for work
    forever)."""
    global _done
    _done = counter
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
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
    """A bar with rate and time left on a terminal, a line every half minute elsewhere, to standard
    error."""
    stop, began = threading.Event(), time.monotonic()

    def state() -> str:
        done, rate = (
            counter.value / scale,
            (counter.value - found) / scale / (time.monotonic() - began + 1e-9),
        )
        return f"{done:,.0f} of {total / scale:,.0f} {unit}, {rate:,.{1 if rate < 10 else 0}f} {unit}/s"

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
