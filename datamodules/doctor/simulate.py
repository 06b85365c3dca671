"""simulate(): micro-batches, steps, padding and idle time of an epoch, without reading data."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np

from datamodules.module import PretrainDataModule
from datamodules.order import StepSampler, readers_for

WORLDS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Simulation:
    """One pass over the data.

    Args:
        micro_batches: number of micro-batches.
        steps: number of optimizer steps; the last one may reach into the next pass.
        rows: smallest, mean and largest number of samples in a micro-batch.
        padding: share of what is computed that is padding.
        cropped: share of the samples' length that is cropped away, to the shortest sample of each
            micro-batch.
        idle: number of processes -> share of the time that they wait for the slowest one, if time
            is proportional to length; None where the micro-batches of a step cannot be divided
            among them.
    """

    micro_batches: int
    steps: float
    rows: tuple[int, float, int]
    padding: float
    cropped: float
    idle: dict[int, float | None]


def simulate(data: PretrainDataModule) -> Simulation:
    """Walk the first pass as the run would.

    Raises:
        ConfigError: if the settings allow no such pass.
    """
    plan = data.plan
    batches = [batch for window in range(plan.windows) for batch in plan.window(window)]
    rows = np.array([len(batch) for batch in batches])
    longest, shortest, whole = _extents(plan.lengths, batches, rows)
    cut = data.transform.crop_to_shortest
    computed = (shortest if cut else longest) * rows
    kept = (shortest * rows).sum() if cut else whole
    steps = max(1, len(batches) // data.micro_batches_per_step)
    stream = StepSampler(
        plan, data.micro_batches_per_step, readers=readers_for(plan, data.micro_batches_per_step)
    )
    walked = [one.ids for one in islice(stream, steps * data.micro_batches_per_step)]
    tall, short, _ = _extents(plan.lengths, walked, np.ones(len(walked)))
    load = (short if cut else tall) * np.array([len(ids) for ids in walked])
    idle = {
        world: None
        if data.micro_batches_per_step % world
        else _idle(load.reshape(steps, world, -1))
        for world in WORLDS
    }
    return Simulation(
        len(batches),
        len(batches) / data.micro_batches_per_step,
        (int(rows.min()), float(rows.mean()), int(rows.max())),
        float(1 - kept / computed.sum()),
        float(1 - kept / whole),
        idle,
    )


def _extents(
    lengths: np.ndarray | None, batches: list[np.ndarray], rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Longest and shortest sample of each micro-batch, and the length of all samples."""
    if lengths is None:
        return np.ones(len(batches)), np.ones(len(batches)), float(rows.sum())
    ends = np.array([(lengths[batch].max(), lengths[batch].min()) for batch in batches], np.float64)
    return ends[:, 0], ends[:, 1], float(sum(lengths[batch].sum() for batch in batches))


def _idle(load: np.ndarray) -> float:
    """The share of the time that processes wait, from the work of each micro-batch: (steps,
    processes, micro-batches of a process in a step)."""
    ranks = load.sum(2)
    return float(1 - ranks.mean() / ranks.max(1).mean())
