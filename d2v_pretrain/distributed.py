"""Ranks that agree without waiting for a device."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed


class Agreement:
    """Does any rank want something? Asked at one step and answered at the next, so that nobody waits.

    The question travels over gloo, in host memory: a device is never asked. Every rank must ask at every step. With one
    rank the answer is immediate.
    """

    def __init__(self) -> None:
        self.world = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
        self.group: Any = distributed.new_group(backend="gloo") if self.world > 1 else None
        self.pending: tuple[torch.Tensor, Any] | None = None

    def ask(self, wish: bool) -> bool:
        """Tell this rank's wish; learn whether any rank had one at the last call."""
        if self.group is None:
            return wish
        answer = self.settle()
        flag = torch.tensor([int(wish)])
        self.pending = flag, distributed.all_reduce(flag, distributed.ReduceOp.MAX, self.group, async_op=True)
        return answer

    def settle(self) -> bool:
        """The answer that is still under way; False if there is none."""
        if self.pending is None:
            return False
        flag, work = self.pending
        work.wait()
        self.pending = None
        return bool(flag.item())
