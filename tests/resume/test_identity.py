"""A run is its name: one history at TensorBoard and Weights & Biases too, as in metrics.jsonl,
however often it is killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from d2v_pretrain.training.loggers import offline_steps
from d2v_pretrain.training.signals import EXIT_REQUEUE
from tests.resume import processes
from tests.resume.processes import COMMON, RUNS

ARGV = [
    *RUNS["vision"],
    *(word for word in COMMON if not word.startswith(("steps", "checkpoint", "log_every"))),
    *("steps=12", "checkpoint.every_steps=4", "log_every=1"),
]


def logged(folder: Path) -> list[int]:
    """The steps in metrics.jsonl; a line that is being written does not count."""
    file = folder / "runs/run/metrics.jsonl"
    whole = file.read_text().split("\n")[:-1] if file.exists() else []
    return [json.loads(line)["step"] for line in whole]


def kill_after(folder: Path, argv: list[str], step: int) -> None:
    """Start a run and kill it when it has logged this step."""
    [process] = processes.start(folder, argv)
    assert processes.waits(lambda: max([0, *logged(folder)]) >= step, [process])
    processes.kill(process)


@pytest.mark.slow
def test_tensorboard_has_each_step_once(tmp_path: Path) -> None:
    """Killed twice, once before the first checkpoint."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    argv = [*ARGV, "logger=tensorboard"]
    kill_after(tmp_path, argv, 3)
    kill_after(tmp_path, argv, 7)
    processes.finish(tmp_path, argv)
    events = accumulator.EventAccumulator(str(tmp_path / "runs/run/tensorboard"))
    events.Reload()
    shown = [event.step for event in events.Scalars("loss")]
    assert shown == logged(tmp_path) == [*range(1, 13)]
    lines = (tmp_path / "runs/run/metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses)


@pytest.mark.slow
def test_one_id_offline_and_each_step_once(tmp_path: Path) -> None:
    """Killed at step 7, with the library's own process, and stopped later: three lives of one run.
    What the kill has lost is sent again."""
    pytest.importorskip("wandb")
    argv = [*ARGV, "logger=wandb"]
    kill_after(tmp_path, argv, 7)
    [process] = processes.start(tmp_path, argv)
    assert processes.waits(lambda: max(logged(tmp_path)) >= 9, [process])
    process.terminate()
    assert processes.ends([process]) == [EXIT_REQUEUE]
    processes.finish(tmp_path, argv)
    folders = sorted((tmp_path / "runs/run/wandb").glob("offline-run-*"))
    assert len(folders) == 3 and {folder.name.rpartition("-")[2] for folder in folders} == {"run"}
    assert logged(tmp_path) == [*range(1, 13)]
    sent = [step for folder in folders for step in offline_steps(next(folder.glob("*.wandb")))]
    assert sent == [*range(1, 13)]
