"""Ranks that agree without waiting for a device, that leave together, and that say who was lost
when one is."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

ROLL_CALL = 10.0  # seconds that a rank gives the others to say what happened to them
_GONE = "does not answer: it failed or was killed (out of memory?), or its machine or the network is gone"
_LOST = (
    "Connection closed by peer",
    "Connection reset",
    "Timed out",
    "timed out",
    "Broken pipe",
    "gloo",
    "NCCL",
)


def minutes(count: float) -> timedelta:
    """So many minutes, for ``trainer.strategy.timeout``."""
    return timedelta(minutes=count)


def world_size() -> int:
    """Ranks of this run; 1 if it is not distributed, or not yet."""
    return (
        distributed.get_world_size()
        if distributed.is_available() and distributed.is_initialized()
        else 1
    )


class Agreement:
    """Does any rank want something? Asked at one step and answered at the next, so that nobody
    waits.

    The question travels over gloo, in host memory: a device is never asked. Every rank must ask at
    every step. With one rank the answer is immediate.

    Args:
        strategy: Lightning's, for how long to wait for the others' answer
            (``trainer.strategy.timeout``).
    """

    def __init__(self, strategy: object) -> None:
        timeout = getattr(strategy, "_timeout", None)  # a group of its own does not inherit it
        self.group: Any = (
            distributed.new_group(backend="gloo", timeout=timeout) if world_size() > 1 else None
        )
        self.pending: tuple[torch.Tensor, Any] | None = None

    def ask(self, wish: bool) -> bool:
        """Tell this rank's wish; learn whether any rank had one at the last call."""
        if self.group is None:
            return wish
        answer = self.settle()
        flag = torch.tensor([int(wish)])
        self.pending = (
            flag,
            distributed.all_reduce(flag, distributed.ReduceOp.MAX, self.group, async_op=True),
        )
        return answer

    def settle(self) -> bool:
        """The answer that is still under way; False if there is none."""
        if self.pending is None:
            return False
        flag, work = self.pending
        work.wait()
        self.pending = None
        return bool(flag.item())


def leave_together() -> None:
    """Wait, by no collective and without a limit, until the first rank has probed and is done.

    srun ends whatever is left of a job a minute after the first task has gone (``--wait``), so none
    may go before."""
    if world_size() == 1:
        return
    store = _store()
    try:
        if distributed.get_rank() == 0:
            store.set("left", "")
        else:
            store.wait(["left"], timedelta(days=30))
    except RuntimeError:
        pass  # the first rank was done, and took the store along


def is_lost(error: BaseException) -> bool:
    """Is this what a rank meets when another one is gone?"""
    signs = isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST)
    return world_size() > 1 and (signs or isinstance(error, distributed.DistError))


def post_mortem(error: BaseException) -> Iterator[str]:
    """What ended this rank, and if it only lost the others, what ended those; nothing for a run on
    one rank.

    Every rank that can leaves its last words in the store of the process group; one that does not
    was killed, or cannot be reached.

    Args:
        error: what ended training here.

    Yields:
        Lines, the first at once: whoever has started this process may be about to end it.
    """
    if world_size() == 1:
        return
    lost = is_lost(error)
    words = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    me = f"rank {distributed.get_rank()} of {world_size()} on {socket.gethostname()}"
    yield f"{me} {'lost another one' if lost else 'failed'} ({words})"
    causes: list[str] = []
    asking = threading.Thread(
        target=_roll_call, args=(me, "" if lost else words, causes), daemon=True
    )
    asking.start()
    asking.join(ROLL_CALL + 5)  # a store behind a cut cable never answers
    if asking.is_alive():
        causes.append(f"rank 0, where all meet, {_GONE}")
    yield from (f"the cause: {cause}" for cause in causes)


def _roll_call(me: str, words: str, causes: list[str]) -> None:
    """Leave this rank's last words, if any; else find the ranks that left some, or those that are
    silent."""
    rank, missing, until = (
        distributed.get_rank(),
        set(range(world_size())),
        time.monotonic() + ROLL_CALL,
    )
    try:
        store = _store()
        store.set(f"last words {rank}", words and f"{me} failed ({words})")
        while missing and not causes and not words and time.monotonic() < until:
            answered = [r for r in missing if store.check([f"last words {r}"])]
            missing.difference_update(answered)
            causes += filter(None, (store.get(f"last words {r}").decode() for r in answered))
            time.sleep(0.1)
        if not causes and not words:
            causes += [f"rank {r} {_GONE}" for r in sorted(missing)]
        time.sleep(
            2 * (rank == 0 and not words)
        )  # the store is here, and the others may not have asked yet
    except RuntimeError:
        causes.append(f"rank 0, where all meet, {_GONE}")


def _store() -> Any:
    return distributed.distributed_c10d._get_default_store()
