"""Asked to stop: one save at a step boundary, exit code 85, the same command goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from d2v_pretrain.checkpoint import file as checkpoint
from d2v_pretrain.training.signals import EXIT_REQUEUE, StopRequest
from tests.resume import processes
from tests.resume.processes import COMMON, RUNS, STEPS

ARGV = RUNS["text"] + COMMON


def last_step(cwd: Path) -> int:
    last, rejected = checkpoint.newest_valid(cwd / "runs/run/checkpoints")
    assert not rejected
    return -1 if last is None else checkpoint.step_of(last)


def test_signals_save_once_and_leave_with_85(tmp_path: Path) -> None:
    processes.finish(tmp_path / "whole", ARGV)
    cwd = tmp_path / "stopped"
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        before = last_step(cwd)
        started = processes.start(cwd, [*ARGV, "workers=1"])
        goal = processes.trained(cwd) + 5
        assert processes.waits(lambda goal=goal: processes.trained(cwd) >= goal, started)
        os.killpg(started[0].pid, number)  # type: ignore[arg-type]  # as Slurm does: workers are signalled too
        assert processes.ends(started) == [EXIT_REQUEUE], (cwd / "out.txt").read_text()[-3000:]
        assert before < last_step(cwd) < STEPS
        assert f"step={last_step(cwd)}.ckpt" in {
            p.name for p in (cwd / "runs/run/checkpoints").iterdir()
        }
    said = (cwd / "out.txt").read_text()
    assert "stopped at step" in said and "SIGTERM" in said and "The same command goes on" in said
    processes.finish(cwd, ARGV)
    assert (
        list(processes.differences(processes.outcome(cwd), processes.outcome(tmp_path / "whole")))
        == []
    )
    assert len(processes.history(cwd)) == 2 * STEPS


def test_a_signal_while_starting_is_heard(tmp_path: Path) -> None:
    started = processes.start(tmp_path, ARGV)
    assert processes.waits(lambda: "run in" in said(tmp_path), started)
    os.kill(started[0].pid, signal.SIGTERM)  # type: ignore[arg-type]
    assert processes.ends(started) == [EXIT_REQUEUE], said(tmp_path)
    assert processes.trained(tmp_path) <= 2


def test_max_hours(tmp_path: Path) -> None:
    assert processes.ends(processes.start(tmp_path, [*ARGV, "max_hours=0.00005"])) == [
        EXIT_REQUEUE
    ], said(tmp_path)
    assert 0 < last_step(tmp_path) < STEPS and "max_hours is over" in said(tmp_path)


def test_a_second_interrupt_quits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    request = StopRequest()
    request.install()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.reason == "Ctrl-C" and not left
        os.kill(os.getpid(), signal.SIGINT)
        assert left == [130]
    finally:
        request.uninstall()


def test_the_handler_that_was_there_before_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    old = signal.signal(signal.SIGUSR2, lambda number, frame: called.append(number))
    request = StopRequest()
    request.install()
    try:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert request.reason == "SIGUSR2" and not called
        request.hand_over()
        assert called == [signal.SIGUSR2]
    finally:
        request.uninstall()
        signal.signal(signal.SIGUSR2, old)


def said(cwd: Path) -> str:
    file = cwd / "out.txt"
    return file.read_text() if file.exists() else ""
