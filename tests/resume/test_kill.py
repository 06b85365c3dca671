"""SIGKILL anywhere: the run ends with the same bits as one that was never killed, and no sample is lost or repeated."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from d2v_pretrain.checkpoint import TEMPORARY
from tests.resume import lives
from tests.resume.lives import COMMON, RUNS, STEPS


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """The outcome of the uninterrupted run of some arguments, made once."""
    made: dict[tuple[str, ...], Path] = {}

    def of(argv: list[str]) -> Path:
        if tuple(argv) not in made:
            made[tuple(argv)] = tmp_path_factory.mktemp("whole")
            lives.finish(made[tuple(argv)], argv)
        return made[tuple(argv)]

    yield of


def kill_and_go_on(cwd: Path, argv: list[str], seed: int, kills: int) -> int:
    """Start, kill, start again; then let it finish. Says how many lives really ended by the kill."""
    draw, killed = random.Random(seed), 0
    for life in range(kills):
        [process] = lives.start(cwd, argv)
        if life % 3 == 2:  # in the middle of a save
            lives.waits((cwd / "runs/run/checkpoints" / TEMPORARY).exists, [process])
        else:
            goal = lives.trained(cwd) + draw.randrange(24)
            lives.waits(lambda goal=goal: lives.trained(cwd) >= goal, [process])
            time.sleep(draw.uniform(0, 0.06))
        lives.kill(process)
        killed += process.exitcode != 0
    lives.finish(cwd, argv)
    return killed


def check(cwd: Path, reference: Path) -> None:
    """Bits, log, and the samples of every pass."""
    assert list(lives.differences(lives.outcome(cwd), lives.outcome(reference))) == []
    assert [line["step"] for line in lives.outcome(cwd)["log"]] == [1, *range(5, STEPS + 1, 5)]
    history = lives.history(cwd)
    assert history == lives.history(reference)
    assert sorted({step for step, _ in history}) == list(range(STEPS))
    *complete, last = lives.passes(history)
    assert complete and all(sorted(ids) == list(range(len(ids))) and len(ids) == len(complete[0]) for ids in complete)
    assert len(set(last)) == len(last)


def test_killed_five_times(tmp_path: Path, whole) -> None:
    argv = RUNS["vision"] + COMMON
    assert kill_and_go_on(tmp_path, [*argv, "workers=1"], seed=1, kills=5) >= 3
    check(tmp_path, whole(argv))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("modality", ["audio", "vision", "text"])
def test_killed_at_random(tmp_path: Path, whole, modality: str, workers: int) -> None:
    argv = RUNS[modality] + COMMON
    assert kill_and_go_on(tmp_path, [*argv, f"workers={workers}"], seed=workers, kills=8) >= 4
    check(tmp_path, whole(argv))
