"""What it costs that a run can be stopped at any step and resumed exactly.

    python -m benchmarks.overhead [folder for the checkpoint, .]

Measured are the sampler that plans which samples each step gets, the agreement of the ranks on
whether to stop, and a save of the base model. Sampler and agreement are compared with a training
step of the tiny models. One thread; times are wall-clock times. All numbers are printed and written
to ``benchmarks/results/overhead.json``."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import distributed, multiprocessing

from d2v_pretrain.checkpoint.lightning import AtomicCheckpointIO
from d2v_pretrain.config.compose import load, register_resolvers
from d2v_pretrain.training.ranks import Agreement
from d2v_pretrain.training.run import build_data, build_module
from d2v_pretrain.types import Batch
from datamodules.module import PretrainDataModule
from datamodules.order import EpochOrder, StepSampler, readers_for

RESULTS = Path(__file__).parent / "results" / "overhead.json"
MODALITIES = ("audio", "vision", "text")


def timed(work: Callable[[], Any]) -> float:
    """Seconds that ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def tiny_step(modality: str, repeats: int = 5) -> dict[str, float]:
    """Seconds of a training step of the tiny recipe (forward, backward, Adam, teacher), and of the
    sampler for one step."""
    cfg = load([f"modality={modality}", "trainer=cpu", "probe=null", "steps=100"])
    data = build_data(cfg)
    assert isinstance(data, PretrainDataModule)
    module = build_module(cfg)
    optimizer, loader = module.configure_optimizers(), data.batches()

    def step(batch: Batch) -> None:
        output = module.objective(batch)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        module.objective.after_step(1)

    batches = [next(loader) for _ in range(repeats + 1)]
    times = [timed(partial(step, batch)) for batch in batches]
    seconds = median(times[1:]) * data.micro_batches_per_step
    stream = StepSampler(data.plan, data.micro_batches_per_step)
    # A whole pass is planned at its first step, so the cost of a step is a mean over passes.
    passes = 3 * len(data.plan.window(0))
    steps = max(1, passes // data.micro_batches_per_step)
    return {
        "step": seconds,
        "stream": timed(lambda: list(islice(stream, steps * data.micro_batches_per_step))) / steps,
    }


def readers(slots: int = 64, shards: int = 4096) -> dict[str, float]:
    """Seconds of the sampler for a step of 64 micro-batches of 16 samples, over 4 million samples
    that are shuffled within windows of 8 shards."""
    draw = np.random.default_rng(0)
    plan = EpochOrder(
        np.full(shards, 1000),
        0,
        16,
        draw.integers(32_000, 320_000, shards * 1000),
        3_800_000,
        window=8,
    )
    count, steps = readers_for(plan, slots), 600
    seconds = timed(lambda: list(islice(StepSampler(plan, slots, readers=count), steps * slots)))
    return {"readers": count, "stream": seconds / steps}


def agreement(world: int = 2, steps: int = 500) -> float:
    """Seconds that a step of 10 ms waits until the ranks agree on whether to stop."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_agree, (world, steps, folder), nprocs=world)
        return max(float((Path(folder) / str(rank)).read_text()) for rank in range(world))


def _agree(rank: int, world: int, steps: int, folder: str) -> None:
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    ranks, waits = Agreement(strategy=None), []
    for _ in range(steps):
        time.sleep(0.01)  # in place of the training step
        waits.append(timed(lambda: ranks.ask(False)))
    ranks.settle()
    (Path(folder) / str(rank)).write_text(str(median(waits)))
    distributed.destroy_process_group()


def save(folder: str) -> dict[str, float]:
    """Seconds that training waits for a save of the base model with teacher and optimizer, when it
    waits for the disk and when the save is asynchronous."""
    cfg = load(
        [
            "experiment=audio_data2vec2_base",
            "modality=audio",
            "data=sample",
            "trainer=cpu",
            "probe=null",
        ]
    )
    module = build_module(cfg)
    optimizer = module.configure_optimizers()
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    content = {
        "global_step": 1,
        "state_dict": module.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
    }
    out = {}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "step=1.ckpt"
        for name, io in (
            ("waits", AtomicCheckpointIO()),
            ("asynchronous", AtomicCheckpointIO(asynchronous=True)),
        ):
            if io.asynchronous:
                io.reserve(content["state_dict"])  # as a run does at its start
            for attempt in ("first", "next"):
                waited = timed(partial(io.save_checkpoint, content, path))
                out[f"{name}, {attempt}"] = waited
                out[f"{name}, {attempt}, on disk after"] = waited + timed(io.wait)
        out["gigabytes"] = path.stat().st_size / 1e9
    return out


def main() -> None:
    """Measure everything, print it, and write it to ``RESULTS``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", default=".", help="where checkpoints are saved (.)")
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    register_resolvers()
    steps = {modality: tiny_step(modality) for modality in MODALITIES}
    agreed, many, saving = agreement(), readers(), save(folder)
    for modality, s in steps.items():
        share = (s["stream"] + agreed) / s["step"]
        print(
            f"{modality:7} step {1e3 * s['step']:7.1f} ms: sampler {1e6 * s['stream']:6.1f} us, "
            f"agreement {1e6 * agreed:.0f} us: {share:.2%}"
        )
    print(
        f"{many['readers']} readers, 64 micro-batches a step: "
        f"sampler {1e6 * many['stream']:.0f} us a step"
    )
    for name, value in saving.items():
        print(f"save of the base model, {name}: {value:.2f}{'' if name == 'gigabytes' else ' s'}")
    RESULTS.parent.mkdir(exist_ok=True)
    result = {
        "steps": steps,
        "agreement": agreed,
        "readers": many,
        "save": saving,
        "load": os.getloadavg()[0],
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
