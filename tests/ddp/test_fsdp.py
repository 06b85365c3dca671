"""trainer=fsdp on CPUs: it trains what trainer=ddp does, exact after a kill, with checkpoints that
anyone can read."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from d2v_pretrain.checkpoint import file as checkpoint
from d2v_pretrain.training.module import TrainingModule
from tests.ddp.test_ranks import TEXT, kill_one, same_training
from tests.resume import processes
from tests.resume.processes import COMMON, RUNS

STEPS = 12
# Two parameter groups, which Lightning's own full checkpoints would mix up.
GROUPS = [*TEXT, "optimizer.weight_decay_on=matrices", "clip=0.05"]


def newest(cwd: Path) -> dict[str, Any]:
    last, rejected = checkpoint.newest_valid(cwd / "runs/run/checkpoints")
    assert last is not None and not rejected
    return checkpoint.read(last)


def close(a: Any, b: Any, where: str = "") -> None:
    """The same structure and tensors that differ by rounding."""
    if isinstance(a, Tensor):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=lambda text: f"{where}: {text}")
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            close(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)):
            close(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def test_killed_on_fsdp_trains_and_saves_what_ddp_does(tmp_path: Path) -> None:
    ddp, fsdp = tmp_path / "ddp", tmp_path / "fsdp"
    processes.finish(ddp, GROUPS, 2)
    codes = kill_one(fsdp, GROUPS, 2, random.Random(3), trainer="fsdp")
    assert None not in codes and all(codes), "a rank outlived the other by a minute"
    processes.finish(fsdp, GROUPS, 2, "fsdp")
    same_training(ddp, fsdp, 1e-5)
    for part in ("state_dict", "optimizer_states", "position"):
        close(newest(fsdp)[part], newest(ddp)[part], part)


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["audio", "vision", "text"])
def test_every_modality(tmp_path: Path, modality: str) -> None:
    """Audio with layer drop: the ranks skip different blocks."""
    argv = [
        a
        for a in RUNS[modality] + COMMON
        if not a.startswith(("steps", "global_batch", "log_every"))
    ]
    argv += ["global_batch=12", f"steps={STEPS}", "log_every=1"]
    for trainer in ("ddp", "fsdp"):
        processes.finish(tmp_path / trainer, argv, 2, trainer)
    same_training(tmp_path / "ddp", tmp_path / "fsdp", 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_killed_and_bit_identical(tmp_path: Path, world: int) -> None:
    argv, draw = [*GROUPS, "steps=30"], random.Random(world)
    processes.finish(tmp_path / "whole", argv, world, "fsdp")
    cwd = tmp_path / "killed"
    for _ in range(4):
        assert None not in kill_one(cwd, argv, world, draw, trainer="fsdp")
    processes.finish(cwd, argv, world, "fsdp")
    assert (
        list(processes.differences(processes.outcome(cwd), processes.outcome(tmp_path / "whole")))
        == []
    )


@pytest.mark.slow
def test_moves_between_fsdp_ddp_and_one_process(tmp_path: Path) -> None:
    argv, draw, cwd = [*GROUPS, "steps=40"], random.Random(4), tmp_path / "moved"
    processes.finish(tmp_path / "whole", argv)
    for world, trainer in ((2, "fsdp"), (1, "ddp"), (3, "fsdp"), (2, "ddp")):
        kill_one(cwd, argv, world, draw, trainer=trainer)
    processes.finish(cwd, argv, 2, "fsdp")
    same_training(tmp_path / "whole", cwd, 1e-4)


def poisoned(cwd: str, argv: list[str], env: dict[str, str]) -> None:
    """A life in which the losses of steps 4 to 7 are nan on the second rank."""
    step = TrainingModule.training_step

    def training_step(module: TrainingModule, batch: Any, batch_idx: int) -> Tensor:
        loss = step(module, batch, batch_idx)
        return loss * float("nan") if module.global_rank == 1 and 4 <= module.updates <= 7 else loss

    TrainingModule.training_step = training_step  # type: ignore[method-assign]
    processes.live(cwd, argv, env)


@pytest.mark.slow
def test_bad_steps_are_skipped_and_gone_back_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "live", poisoned)
    for trainer in ("ddp", "fsdp"):
        argv = [*GROUPS, "callbacks.bad_steps.patience=3", "log_every=4", "checkpoint.keep_last=9"]
        processes.finish(tmp_path / trainer, argv, 2, trainer)
    written = [
        (tmp_path / trainer / "runs/run/bad_steps.jsonl").read_text() for trainer in ("ddp", "fsdp")
    ]
    assert written[0] == written[1] and written[0].count("\n") == 4
    a, b = (newest(tmp_path / trainer)["state_dict"] for trainer in ("ddp", "fsdp"))
    assert all(value.isfinite().all() for value in b.values())
    close(b, a)
