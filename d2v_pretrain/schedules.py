"""Schedules: functions from the number of optimizer steps done to a value.

The learning rate of the k-th step is ``lr_schedule(k - 1)``; the teacher's decay after it is
``decay(k)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """``value`` at every step."""

    value: float

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True)
class Linear:
    """``end - (end - start) (1 - step / steps)``, then ``end``: the teacher's decay in both papers.

    Source: fairseq ``get_annealed_rate``. ``end = 1`` freezes the teacher from ``steps`` on, as in
    the published large models.
    """

    start: float
    end: float
    steps: int

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.end
        return self.end - (self.end - self.start) * (1 - step / self.steps)


@dataclass(frozen=True)
class WarmupCosine:
    """Linear from ``initial`` to ``peak`` over ``warmup`` steps, then half a cosine to ``final`` at
    ``steps``, then ``final``.

    Source: fairseq ``cosine_lr_scheduler``, which starts a new period after the end.
    """

    peak: float
    warmup: int
    steps: int
    initial: float = 0.0
    final: float = 0.0

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.initial + (self.peak - self.initial) * step / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.final + 0.5 * (self.peak - self.final) * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class TriStage:
    """Linear warm-up, constant, *exponential* decay, each for a given share of ``steps``.

    The paper says that the last stage is linear. The published code, which is followed here, decays
    as ``peak exp(log(final_scale) t)``. Source: fairseq ``tri_stage_lr_scheduler``.

    Args:
        peak: value while holding.
        steps: total number of steps.
        phases: shares of warm-up, hold and decay; they sum to 1.
        initial_scale: first value as a share of the peak.
        final_scale: last value as a share of the peak.
    """

    peak: float
    steps: int
    phases: tuple[float, float, float]
    initial_scale: float = 0.01
    final_scale: float = 0.01

    def __call__(self, step: int) -> float:
        warmup, hold, decay = (int(share * self.steps) for share in self.phases)
        if step < warmup:
            return self.peak * (self.initial_scale + (1 - self.initial_scale) * step / warmup)
        if step < warmup + hold:
            return self.peak
        done = min(1.0, (step - warmup - hold) / max(1, decay))
        return self.peak * self.final_scale**done


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from ``start`` to ``end`` over ``steps``, then ``end``: the teacher's decay in
    BYOL and DINO.
    """

    start: float
    end: float
    steps: int

    def __call__(self, step: int) -> float:
        progress = min(1.0, step / max(1, self.steps))
        return self.end - 0.5 * (self.end - self.start) * (1 + math.cos(math.pi * progress))
