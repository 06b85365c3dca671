"""Several ranks on the CPU (gloo): the same steps as one rank, exact after a kill or a signal on
any of them."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from d2v_pretrain.checkpoint import file as checkpoint
from d2v_pretrain.training.signals import EXIT_REQUEUE
from tests.resume import processes
from tests.resume.processes import COMMON, RUNS

# Six micro-batches a step: 1, 2, 3 and 6 ranks divide them.
SHORT = 12
ARGV = [
    a
    for a in RUNS["text"] + COMMON
    if not a.startswith(("steps", "global_batch", "checkpoint", "log_every"))
]
ARGV += ["global_batch=12", "checkpoint.every_steps=3", "log_every=1", "objective.predictor.dim=64"]
TEXT = [*ARGV, f"steps={SHORT}"]


def same_training(one: Path, other: Path, tolerance: float) -> None:
    """The same samples and masks in every micro_batch of every step; losses within ``tolerance``,
    relative."""
    a, b = processes.history(one, exact=False), processes.history(other, exact=False)
    assert a.keys() == b.keys()
    assert all(processes.without_loss(a[place]) == processes.without_loss(b[place]) for place in a)
    ours, theirs = (torch.tensor([h[place]["loss"] for place in sorted(a)]) for h in (a, b))
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=0)


def kill_one(
    cwd: Path,
    argv: list[str],
    world: int,
    draw: random.Random,
    number: int = signal.SIGKILL,
    trainer: str = "ddp",
) -> list[int | None]:
    """Signal a random rank at a random moment of training; the exit codes of all, which must leave
    by themselves."""
    ranks = processes.start(cwd, argv, world, trainer)
    goal = processes.trained(cwd) + draw.randrange(1, 8)
    processes.waits(lambda: processes.trained(cwd) >= goal, ranks)
    time.sleep(draw.uniform(0, 0.03))
    os.kill(ranks[draw.randrange(world)].pid, number)  # type: ignore[arg-type]
    return processes.ends(ranks)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on three ranks that nothing happens to. With two, DDP's regrouping of its buckets could
    not show."""
    cwd = tmp_path_factory.mktemp("whole")
    processes.finish(cwd, TEXT, world=3)
    return cwd


def test_three_ranks_train_what_one_trains(tmp_path: Path, whole: Path) -> None:
    processes.finish(tmp_path, TEXT)
    same_training(tmp_path, whole, 1e-5)


def test_a_rank_dies_and_the_run_goes_on_to_the_same_bits(tmp_path: Path, whole: Path) -> None:
    cwd = tmp_path / "killed"
    codes = kill_one(cwd, TEXT, 3, random.Random(0))
    assert None not in codes, "a rank outlived the others by a minute"
    assert all(codes)
    processes.finish(cwd, TEXT, world=3)
    assert list(processes.differences(processes.outcome(cwd), processes.outcome(whole))) == []
    assert processes.history(cwd) == processes.history(whole)


def test_a_signal_to_one_rank_stops_all(tmp_path: Path) -> None:
    codes = kill_one(tmp_path, TEXT, 2, random.Random(1), signal.SIGTERM)
    assert codes == [EXIT_REQUEUE, 0], (tmp_path / "out.txt").read_text()[-3000:]
    last, rejected = checkpoint.newest_valid(tmp_path / "runs/run/checkpoints")
    assert last is not None and not rejected


def behind(cwd: str, argv: list[str], env: dict[str, str]) -> None:
    """A life whose second rank does not see the newest checkpoint yet."""
    newest = checkpoint.newest_valid

    def newest_valid(folder: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
        path, rejected = newest(folder)
        return (folder / "step=6.ckpt" if env["RANK"] == "1" else path), rejected

    checkpoint.newest_valid = newest_valid
    LIVE(cwd, argv, env)


LIVE = processes.live


def test_ranks_that_see_different_checkpoints_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [*TEXT, "checkpoint.keep_last=9"]
    processes.finish(tmp_path, [*argv, "steps=9"], world=2)
    monkeypatch.setattr(processes, "live", behind)
    codes = processes.ends(processes.start(tmp_path, [*argv, "steps=12"], world=2))
    assert codes == [2, 2]
    assert "they go on from steps 9, 6" in (tmp_path / "out.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["audio", "vision", "text"])
def test_any_number_of_ranks(tmp_path: Path, modality: str) -> None:
    argv = [
        a
        for a in RUNS[modality] + COMMON
        if not a.startswith(("steps", "global_batch", "log_every"))
    ]
    argv += ["global_batch=12", "steps=50", "log_every=1"]
    for world in (1, 2, 3, 6):
        processes.finish(tmp_path / str(world), argv, world)
        same_training(tmp_path / "1", tmp_path / str(world), 1e-5)


@pytest.mark.slow
def test_elastic(tmp_path: Path) -> None:
    """Stopped or killed, and started again on 1, 3, 2 and 1 ranks: one history."""
    processes.finish(tmp_path / "whole", TEXT)
    draw, cwd = random.Random(2), tmp_path / "elastic"
    for world in (1, 3, 2):
        kill_one(cwd, TEXT, world, draw, draw.choice([signal.SIGKILL, signal.SIGTERM]))
    processes.finish(cwd, TEXT)
    same_training(tmp_path / "whole", cwd, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_twenty_signals(tmp_path: Path, world: int) -> None:
    argv, draw = [*ARGV, "steps=120"], random.Random(world)
    processes.finish(tmp_path / "whole", argv, world)
    cwd = tmp_path / "stopped"
    for _ in range(20):
        codes = kill_one(cwd, argv, world, draw, signal.SIGTERM)
        assert None not in codes and processes.stopped_or_done(codes), (
            cwd / "out.txt"
        ).read_text()[-3000:]
    processes.finish(cwd, argv, world)
    assert (
        list(processes.differences(processes.outcome(cwd), processes.outcome(tmp_path / "whole")))
        == []
    )


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_ten_kills(tmp_path: Path, world: int) -> None:
    argv, draw = [*ARGV, "steps=40"], random.Random(world)
    processes.finish(tmp_path / "whole", argv, world)
    cwd = tmp_path / "killed"
    for _ in range(10):
        assert None not in kill_one(cwd, argv, world, draw)
    processes.finish(cwd, argv, world)
    assert (
        list(processes.differences(processes.outcome(cwd), processes.outcome(tmp_path / "whole")))
        == []
    )
