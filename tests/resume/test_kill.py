"""SIGKILL anywhere: the run ends with the same bits as one that was never killed, and no sample is
lost or repeated."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from d2v_pretrain.checkpoint.file import TEMPORARY, newest_valid, step_of
from tests.resume import processes
from tests.resume.processes import COMMON, RUNS, STEPS


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """The outcome of the uninterrupted run of some arguments, made once."""
    made: dict[tuple[str, ...], Path] = {}

    def of(argv: list[str]) -> Path:
        if tuple(argv) not in made:
            made[tuple(argv)] = tmp_path_factory.mktemp("whole")
            processes.finish(made[tuple(argv)], argv)
        return made[tuple(argv)]

    yield of


def kill_and_go_on(cwd: Path, argv: list[str], seed: int, kills: int) -> int:
    """Start, kill, start again; then let it finish. Says how many lives really ended by the
    kill."""
    draw, killed = random.Random(seed), 0
    for life in range(kills):
        [process] = processes.start(cwd, argv)
        if life % 3 == 2:  # in the middle of a save
            processes.waits((cwd / "runs/run/checkpoints" / TEMPORARY).exists, [process])
        else:
            goal = processes.trained(cwd) + draw.randrange(24)
            processes.waits(lambda goal=goal: processes.trained(cwd) >= goal, [process])
            time.sleep(draw.uniform(0, 0.06))
        processes.kill(process)
        killed += process.exitcode != 0
    processes.finish(cwd, argv)
    return killed


def check(cwd: Path, reference: Path) -> None:
    """Bits, log, and the samples of every pass."""
    assert list(processes.differences(processes.outcome(cwd), processes.outcome(reference))) == []
    assert [line["step"] for line in processes.outcome(cwd)["log"]] == [1, *range(5, STEPS + 1, 5)]
    history = processes.history(cwd)
    assert history == processes.history(reference)
    assert sorted({step for step, _ in history}) == list(range(STEPS))
    *complete, last = processes.passes(history)
    assert complete and all(
        sorted(ids) == list(range(len(ids))) and len(ids) == len(complete[0]) for ids in complete
    )
    assert len(set(last)) == len(last)


def test_killed_five_times(tmp_path: Path, whole) -> None:
    argv = RUNS["vision"] + COMMON
    assert kill_and_go_on(tmp_path, [*argv, "workers=1"], seed=1, kills=5) >= 3
    check(tmp_path, whole(argv))


@pytest.mark.slow
@pytest.mark.parametrize("more", [["workers=0"], ["workers=1", "checkpoint.asynchronous=true"]])
@pytest.mark.parametrize("modality", ["audio", "vision", "text"])
def test_killed_at_random(tmp_path: Path, whole, modality: str, more: list[str]) -> None:
    argv = RUNS[modality] + COMMON
    assert kill_and_go_on(tmp_path, [*argv, *more], seed=len(more), kills=8) >= 4
    check(tmp_path, whole(argv))


def test_killed_at_the_boundary_of_a_pass_and_in_probes(tmp_path: Path, whole) -> None:
    """On the way and at the end: what the probes say is the same too, and the last one is made up
    for."""
    argv = [a for a in RUNS["vision"] + COMMON if a != "probe=null"]
    argv += ["probe.every=20", "data.train=40", "data.test=20"]
    for ready in (
        lambda: (
            processes.trained(tmp_path) >= 37 // 2 // 2
        ),  # 37 images, two a micro-batch, of which micro_batch 0 sees half
        lambda: processes.probes(tmp_path) >= 1,
        lambda: (
            processes.probes(tmp_path) >= 4
        ),  # at steps 20 (twice, after a life) and 40, and the one at the end
    ):
        [process] = processes.start(tmp_path, argv)
        assert processes.waits(ready, [process])
        processes.kill(process)
    last, _ = newest_valid(tmp_path / "runs/run/checkpoints")
    assert (
        last is not None
        and step_of(last) == STEPS
        and not (tmp_path / "runs/run/probe.json").exists()
    )
    processes.finish(tmp_path, argv)
    check(tmp_path, whole(argv))
    ours, theirs = (
        json.loads((cwd / "runs/run/probe.json").read_text()) for cwd in (tmp_path, whole(argv))
    )
    assert ours == theirs
