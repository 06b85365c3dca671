"""UpdateGuard: an error for a training loop that forgets to update the teacher."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook


class UpdateGuard:
    """Counts the steps that optimizers take on a student until its teacher is updated.

    It sees the steps of every ``torch.optim.Optimizer`` that holds the student's first trainable
    parameter. Gradient accumulation, backward passes without a step and loading weights do not
    count. FSDP replaces the parameters; the guard then sees no step, so a forgotten update of the
    teacher is not noticed.

    Args:
        student: the module that is trained.
    """

    def __init__(self, student: nn.Module) -> None:
        self.witness = next((p for p in student.parameters() if p.requires_grad), None)
        self.steps = 0
        _GUARDS.add(self)

    def check(self) -> None:
        """Raise ``RuntimeError`` if an optimizer step was not followed by the teacher's update."""
        if self.steps:
            raise RuntimeError(
                f"the teacher has missed {self.steps} optimizer step(s): call "
                "objective.after_step(n) after optimizer.step(), with n = 1 after the first step"
            )


_GUARDS: weakref.WeakSet[UpdateGuard] = weakref.WeakSet()


def _count_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for guard in _GUARDS:
        groups = optimizer.param_groups
        guard.steps += any(p is guard.witness for group in groups for p in group["params"])


register_optimizer_step_post_hook(_count_step)
