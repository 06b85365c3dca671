"""Ranks of a run: how they agree on stopping, exit together, and report which of them failed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch import distributed

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.training.internals import collective_timeout, default_store

ROLL_CALL = 10.0  # seconds that a rank waits for the others to report what happened to them
_GONE = (
    "does not answer: it failed or was killed (out of memory?), or its machine or the network is "
    "gone"
)
_LOST = (  # in the messages of errors that are raised when another rank is gone
    "Connection closed by peer",
    "Connection reset",
    "Timed out",
    "timed out",
    "Broken pipe",
    "gloo",
    "NCCL",
)


def minutes(count: float) -> timedelta:
    """A duration for ``trainer.strategy.timeout`` in a configuration."""
    return timedelta(minutes=count)


def world_size() -> int:
    """Number of ranks of this run; 1 while no process group exists."""
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def check_same_step(step: int) -> None:
    """Compare the step from which each rank goes on. Every rank must call it.

    Raises:
        ConfigError: they differ, because a rank did not see the newest checkpoint yet. A file
            system over a network may show a new file late.
    """
    if world_size() == 1:
        return
    steps: list[int] = [step] * world_size()
    distributed.all_gather_object(steps, step)
    if len(set(steps)) > 1:
        rule = "is not the same step on all ranks: they go on from steps "
        rule += ", ".join(map(str, steps))
        remedy = "type the same command again, when all nodes see the newest checkpoint"
        raise ConfigError("checkpoint", step, rule, remedy)


class Agreement:
    """Lets ranks ask whether any of them wants something, such as to stop. The answer to a question
    comes one step later, so that no rank waits.

    The ranks communicate over gloo in host memory, which does not wait for the device. Every rank
    must ask at every step. With one rank the answer is immediate.

    Args:
        strategy: Lightning's; it knows how long to wait for the others.
    """

    def __init__(self, strategy: Strategy) -> None:
        self.group = _host_group(strategy)
        self.pending: tuple[torch.Tensor, Any] | None = None

    def ask(self, wish: bool) -> bool:
        """Send this rank's wish; return whether any rank had one at the last call."""
        if self.group is None:
            return wish
        answer = self.settle()
        flag = torch.tensor([int(wish)])
        largest = distributed.ReduceOp.MAX
        self.pending = flag, distributed.all_reduce(flag, largest, self.group, async_op=True)
        return answer

    def settle(self) -> bool:
        """The answer to the last question; False if there is none."""
        if self.pending is None:
            return False
        flag, work = self.pending
        work.wait()
        self.pending = None
        return bool(flag.item())


class Totals:
    """Sums whole numbers over all ranks, in host memory, so that the device is not waited for.

    Every rank must call ``start`` and then ``wait`` in every step. What is done in between hides
    the time that the numbers travel.

    Args:
        strategy: Lightning's; it knows how long to wait for the others.
    """

    def __init__(self, strategy: Strategy) -> None:
        self.group = _host_group(strategy)
        self.numbers, self.work = torch.zeros(0, dtype=torch.int64), None

    def start(self, numbers: list[int]) -> None:
        """Send this rank's numbers."""
        self.numbers = torch.tensor(numbers)
        if self.group is not None:
            self.work = distributed.all_reduce(self.numbers, group=self.group, async_op=True)

    def wait(self) -> list[int]:
        """The sums of the numbers that were sent last."""
        if self.work is not None:
            self.work.wait()
            self.work = None
        return self.numbers.tolist()

    def texts(self, mine: str) -> list[str]:
        """The texts of all ranks. Every rank must call this."""
        texts = [mine] * world_size()
        if self.group is not None:
            distributed.all_gather_object(texts, mine, group=self.group)
        return texts


def _host_group(strategy: Strategy) -> Any:
    """A group of all ranks that communicates over gloo; None on one rank."""
    if world_size() == 1:
        return None
    return distributed.new_group(backend="gloo", timeout=collective_timeout(strategy))


def leave_together() -> None:
    """Block until rank 0 has finished its final evaluation.

    The ranks wait through the TCP store, because a collective would time out. None may exit before
    rank 0: srun ends the rest of a job a minute after the first task has exited (``--wait``).
    """
    if world_size() == 1:
        return
    store = default_store()
    try:
        if distributed.get_rank() == 0:
            store.set("left", "")
        else:
            store.wait(["left"], timedelta(days=30))
    except RuntimeError:
        pass  # rank 0 was done, and the store ended with its process


def is_lost(error: BaseException) -> bool:
    """Whether this error means that another rank is gone, and not that this one failed."""
    signs = isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST)
    return world_size() > 1 and (signs or isinstance(error, distributed.DistError))


def post_mortem(error: BaseException) -> Iterator[str]:
    """Explain what ended this rank and, if it only lost another one, what ended that one.

    Every rank that fails writes its error into the store of the process group. A rank that wrote
    nothing was killed or cannot be reached.

    Args:
        error: what ended training here.

    Yields:
        Lines to print; none on one rank. The first comes at once, because the launcher may be about
        to kill this process.
    """
    if world_size() == 1:
        return
    lost = is_lost(error)
    words = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    me = f"rank {distributed.get_rank()} of {world_size()} on {socket.gethostname()}"
    yield f"{me} {'lost another one' if lost else 'failed'} ({words})"
    causes: list[str] = []
    words_if_failed = "" if lost else words
    asking = threading.Thread(target=_roll_call, args=(me, words_if_failed, causes), daemon=True)
    asking.start()
    asking.join(ROLL_CALL + 5)  # if the network is down, the store never answers
    if asking.is_alive():
        causes.append(f"rank 0, where all meet, {_GONE}")
    yield from (f"the cause: {cause}" for cause in causes)


def _roll_call(me: str, words: str, causes: list[str]) -> None:
    """Write this rank's last words if it failed; else collect in ``causes`` the words of ranks that
    did, or those that stay silent.
    """
    rank, missing = distributed.get_rank(), set(range(world_size()))
    until = time.monotonic() + ROLL_CALL
    try:
        store = default_store()
        store.set(f"last words {rank}", words and f"{me} failed ({words})")
        while missing and not causes and not words and time.monotonic() < until:
            answered = [r for r in missing if store.check([f"last words {r}"])]
            missing.difference_update(answered)
            causes += filter(None, (store.get(f"last words {r}").decode() for r in answered))
            time.sleep(0.1)
        if not causes and not words:
            causes += [f"rank {r} {_GONE}" for r in sorted(missing)]
        if rank == 0 and not words:
            time.sleep(2)  # the store lives in this process, and the others may still need it
    except RuntimeError:
        causes.append(f"rank 0, where all meet, {_GONE}")
