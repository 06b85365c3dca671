"""Lives of a run: whole `train.py` processes, forked from one that has torch imported already,
traced and killed."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from d2v_pretrain.checkpoint import file as checkpoint
from d2v_pretrain.training.signals import EXIT_REQUEUE

FORKS = multiprocessing.get_context("forkserver")
# Only what is installed: the server of Python 3.11 does not get this process's path.
WARM = [
    "d2v_pretrain.cli",
    "d2v_pretrain.training.run",
    "datamodules.module",
    "torch._dynamo",
    "torch.distributed",
    "pytest",
]
FORKS.set_forkserver_preload(WARM)
STEPS, EVERY = 40, 7
ENCODER = ["encoder.width=16", "encoder.depth=2", "encoder.heads=2", "objective.targets.top_k=2"]
COMMON = [
    *ENCODER,
    "trainer=cpu",
    "probe=null",
    "name=run",
    f"steps={STEPS}",
    f"checkpoint.every_steps={EVERY}",
    "micro_batch=2",
    "global_batch=4",
    "log_every=5",
    "warmup=5",
    "ema.steps=20",
]
# Small passes, so that a run is several; dropout, layer drop, crops and decoder noise are all on.
RUNS = {
    "audio": [
        "modality=audio",
        "data.sequences=34",
        "transform.crop_seconds=0.4",
        "max_tokens=9000",
        "encoder.conv=[[16,10,10],[16,8,8],[16,4,4]]",
        "architecture.layer_drop=0.3",
        "architecture.input_dropout=0.1",
        "architecture.positions.groups=4",
        "masking.length=2",
        "objective.predictor.dim=16",
        "objective.predictor.groups=4",
    ],
    "vision": [
        "modality=vision",
        "data.images=37",
        "objective.predictor.dim=16",
        "objective.predictor.groups=4",
    ],
    "text": [
        "modality=text",
        "data=folder",
        "data.root=texts",
        "transform.vocab_size=280",
        "transform.block=16",
        "objective.predictor.dim=16",
        "objective.predictor.groups=4",
    ],
}
TIMES = {
    "samples_per_s",
    "data_wait",
    "eta_s",
    "mfu",
    "padding",
}  # of a stretch of wall time, not of the run


def live(cwd: str, argv: Sequence[str], env: dict[str, str]) -> None:
    """Be one process of a run, from the command line to the exit code; every micro-batch leaves a
    line in trace/."""
    os.chdir(cwd)
    os.environ.update(env)
    os.setpgrp()
    torch.set_num_threads(1)
    multiprocessing.set_start_method(
        "fork", force=True
    )  # data-loading workers are started as in any other process
    sys.argv = ["train.py", *argv]
    out = os.open("out.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1), os.dup2(out, 2)
    from d2v_pretrain.cli import main
    from d2v_pretrain.training.callbacks import probe
    from d2v_pretrain.training.module import TrainingModule

    trained = TrainingModule.training_step
    Path("trace").mkdir(exist_ok=True)

    def training_step(module: TrainingModule, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = trained(module, batch, batch_idx)
        if batch.cursor:  # a batch of the stream, not DDP's throw-away one
            accumulate = module.trainer.accumulate_grad_batches
            micro_batch = module.global_rank * accumulate + batch_idx % accumulate
            drawn = (
                module.objective.draw(batch).masked
                if hasattr(module.objective, "draw")
                else batch.labels
            )
            mask = hashlib.sha256(drawn.numpy().tobytes()).hexdigest()[:16]
            line = {
                "step": module.updates,
                "micro_batch": micro_batch,
                "epoch": batch.epoch,
                "ids": batch.ids.tolist(),
                "mask": mask,
                "loss": loss.item() / accumulate,
            }
            with open(f"trace/{micro_batch}.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")
        return loss

    TrainingModule.training_step = training_step  # type: ignore[method-assign]
    measured = probe.probe

    def noted(*args: Any, **more: Any) -> Any:
        with open("probes", "a") as file:
            file.write("\n")
        return measured(*args, **more)

    probe.probe = noted
    main()


def start(
    cwd: Path, argv: Sequence[str], world: int = 1, trainer: str = "ddp"
) -> list[BaseProcess]:
    """Start a run on ``world`` ranks, as torchrun would; one rank is trained by trainer=cpu."""
    texts(cwd)
    env = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    ranks = []
    if world > 1:
        argv = [
            *argv,
            f"trainer={trainer}",
            "trainer.accelerator=cpu",
            f"trainer.devices={world}",
            "trainer.precision=32-true",
        ]
        argv.remove("trainer=cpu")
        env |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "WORLD_SIZE": str(world),
        }
        env |= {"TORCHELASTIC_RUN_ID": "lives", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": str(world)}
        ranks = [{"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(world)]
    processes = [
        FORKS.Process(target=live, args=(str(cwd), list(argv), env | rank))
        for rank in ranks or [{}]
    ]
    for process in processes:
        process.start()
    return processes


def texts(cwd: Path) -> None:
    """Make the folder of a run, with the data of RUNS["text"]."""
    if not (cwd / "texts").exists():
        (cwd / "texts").mkdir(parents=True)
        (cwd / "texts" / "a.txt").write_text("\n\n".join(_sentences()))


def finish(
    cwd: Path, argv: Sequence[str], world: int = 1, trainer: str = "ddp", limit: float = 240
) -> None:
    """Let a run come to its end."""
    processes = start(cwd, argv, world, trainer)
    assert ends(processes, limit) == [0] * world, (cwd / "out.txt").read_text()[-3000:]


def ends(processes: list[BaseProcess], limit: float = 60) -> list[int | None]:
    """Exit codes; whatever is still alive after ``limit`` seconds is killed and counts as None."""
    until = time.monotonic() + limit
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            kill(process)
    return codes


def kill(process: BaseProcess) -> None:
    """SIGKILL to a process and its data-loading workers, as the kernel or a scheduler does it."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
    process.join()


def waits(condition: Callable[[], bool], processes: list[BaseProcess], limit: float = 120) -> bool:
    """Wait until ``condition`` holds or the run has ended; says whether it holds."""
    until = time.monotonic() + limit
    while not condition() and time.monotonic() < until and all(p.is_alive() for p in processes):
        time.sleep(0.002)
    return condition()


def stopped_or_done(codes: list[int | None]) -> bool:
    """The first rank says how it went; see cli.py."""
    return codes[0] in (0, EXIT_REQUEUE) and not any(codes[1:])


def trained(cwd: Path) -> int:
    """Micro-batches of micro_batch 0 begun so far, over all processes."""
    file = cwd / "trace" / "0.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def probes(cwd: Path) -> int:
    """Probes begun so far, over all processes."""
    file = cwd / "probes"
    return len(file.read_bytes()) if file.exists() else 0


def outcome(cwd: Path, name: str = "run") -> dict[str, Any]:
    """What must be the same to the last bit: weights, teacher, optimizer, position, and the log but
    for wall time."""
    last, rejected = checkpoint.newest_valid(cwd / "runs" / name / "checkpoints")
    assert last is not None and not rejected
    content = checkpoint.read(last)
    kept = {
        name: content[name]
        for name in ("state_dict", "optimizer_states", "position", "global_step")
    }
    lines = [
        json.loads(line)
        for line in (cwd / "runs" / name / "metrics.jsonl").read_text().splitlines()
    ]
    return kept | {"log": [{k: v for k, v in line.items() if k not in TIMES} for line in lines]}


def differences(a: Any, b: Any, where: str = "") -> Iterator[str]:
    """Where two outcomes differ, bit by bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape or a.numpy().tobytes() != b.numpy().tobytes():
            yield where
    elif isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            yield f"{where}: only one has {sorted(map(str, a.keys() ^ b.keys()))}"
        for key in a.keys() & b.keys():
            yield from differences(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b)):
            yield from differences(x, y, f"{where}[{i}]")
    elif a != b:
        yield f"{where}: {a!r} and {b!r}"


def history(cwd: Path, exact: bool = True) -> dict[tuple[int, int], dict[str, Any]]:
    """(step, micro_batch) -> what was trained there.

    If several processes trained on it, they must have done the same; without ``exact`` the bits of
    the loss may differ.
    """
    seen: dict[tuple[int, int], dict[str, Any]] = {}
    for file in (cwd / "trace").glob("*.jsonl"):
        for text in file.read_text().splitlines():
            line = json.loads(text)
            before = seen.setdefault((line.pop("step"), line.pop("micro_batch")), line)
            same = before == line or (not exact and without_loss(before) == without_loss(line))
            assert same, (file, before, line)
    return seen


def without_loss(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != "loss"}


def passes(history: dict[tuple[int, int], dict[str, Any]]) -> list[list[int]]:
    """Sample ids of each pass over the data, in the order of training."""
    epochs: dict[int, list[int]] = {}
    for place in sorted(history):
        epochs.setdefault(history[place]["epoch"], []).extend(history[place]["ids"])
    return [epochs[e] for e in sorted(epochs)]


def _sentences() -> Iterator[str]:
    words = [
        "the",
        "a",
        "red",
        "old",
        "cat",
        "dog",
        "sees",
        "eats",
        "finds",
        "house",
        "tree",
        "under",
        "over",
    ]
    for i in range(40):
        yield " ".join(words[(i * 7 + j * j) % len(words)] for j in range(9)) + "."


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
