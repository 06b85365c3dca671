"""Asked to stop: one save at a step boundary, exit code 85, the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from d2v_pretrain.checkpoint import file as checkpoint
from d2v_pretrain.config import options
from d2v_pretrain.evaluate import Options
from d2v_pretrain.training import run
from d2v_pretrain.training.callbacks import probe
from d2v_pretrain.training.module import TrainingModule
from d2v_pretrain.training.signals import EXIT_REQUEUE, GRACE, StopRequest
from tests.resume import processes
from tests.resume.processes import COMMON, RUNS, STEPS

ARGV = RUNS["text"] + COMMON
ROOT = Path(__file__).parents[2]


def last_step(cwd: Path) -> int:
    last, rejected = checkpoint.newest_valid(cwd / "runs/run/checkpoints")
    assert not rejected
    return -1 if last is None else checkpoint.step_of(last)


def test_signals_save_once_and_leave_with_85(tmp_path: Path) -> None:
    processes.finish(tmp_path / "whole", ARGV)
    cwd = tmp_path / "stopped"
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        before = last_step(cwd)
        started = processes.start(cwd, [*ARGV, "workers=1"])
        goal = processes.trained(cwd) + 3
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


LIVE = processes.live


def indexing(cwd: str, argv: list[str], env: dict[str, str]) -> None:
    """A life whose data take very long to index."""

    def build_data(cfg: object) -> None:
        print("now", flush=True)
        time.sleep(600)

    run.build_data = build_data  # type: ignore[assignment]
    LIVE(cwd, argv, env)


def meeting(cwd: str, argv: list[str], env: dict[str, str]) -> None:
    """A life that waits in C++ for another rank, where Python's handlers do not run."""

    def build_data(cfg: object) -> None:
        print("now", flush=True)
        torch.distributed.TCPStore("127.0.0.1", 0, 2, True, timedelta(minutes=10))

    run.build_data = build_data  # type: ignore[assignment]
    LIVE(cwd, argv, env)


def compiling(cwd: str, argv: list[str], env: dict[str, str]) -> None:
    """A life that does not come to the end of its first step."""

    def training_step(module: TrainingModule, batch: object, batch_idx: int) -> torch.Tensor:
        print("now", flush=True)
        time.sleep(600)
        raise AssertionError

    TrainingModule.training_step = training_step  # type: ignore[assignment, method-assign]
    LIVE(cwd, argv, env)


NOTHING = "while there was nothing to save"


def stop(cwd: Path, number: int, words: str = NOTHING) -> None:
    """Start a life, signal it when it has printed "now"; it must end within seconds, and say so."""
    before = said(cwd).count("now\n")
    started = processes.start(cwd, ARGV)
    assert processes.waits(lambda: said(cwd).count("now\n") > before, started), said(cwd)
    began = time.monotonic()
    os.kill(started[0].pid, number)  # type: ignore[arg-type]
    assert processes.ends(started) == [EXIT_REQUEUE], said(cwd)
    assert time.monotonic() - began < GRACE + 10  # the seconds of a busy machine
    assert words in said(cwd)
    assert "Traceback" not in said(cwd), said(cwd)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_before_the_first_step_it_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A new run leaves nothing behind, and the same command then starts as if for the first
    time."""
    monkeypatch.setattr(processes, "live", indexing)
    stop(tmp_path, number)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_signal_within_a_library_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "live", meeting)
    started = processes.start(tmp_path, ARGV)
    assert processes.waits(lambda: "now" in said(tmp_path), started), said(tmp_path)
    time.sleep(1)  # until it is within the library
    began = time.monotonic()
    os.kill(started[0].pid, signal.SIGTERM)  # type: ignore[arg-type]
    assert processes.ends(started) == [EXIT_REQUEUE], said(tmp_path)
    assert time.monotonic() - began < GRACE + 10 and not (tmp_path / "runs").exists()


def test_in_the_first_step_the_folder_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a new run only what was learned about the data stays, which is complete; of an old one
    every byte."""
    monkeypatch.setattr(processes, "live", compiling)
    stop(tmp_path, signal.SIGTERM)
    left = {path.name for path in (tmp_path / "runs/run").iterdir()}
    assert left == {"tokenizer.json", "skipped.jsonl"}
    monkeypatch.setattr(processes, "live", LIVE)
    processes.finish(tmp_path, [*ARGV, "steps=12"])
    before = content(tmp_path / "runs")
    monkeypatch.setattr(processes, "live", compiling)
    stop(tmp_path, signal.SIGUSR1)
    assert content(tmp_path / "runs") == before


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def probing(cwd: str, argv: list[str], env: dict[str, str]) -> None:
    """A life whose probe takes very long."""

    def measure(*args: object, **more: object) -> None:
        print("now", flush=True)
        time.sleep(600)

    probe.probe = measure  # type: ignore[assignment]
    LIVE(cwd, argv, env)


@pytest.mark.slow
def test_in_the_last_probe_it_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is saved then; the same command makes up for the probe."""
    argv = [a for a in RUNS["vision"] + COMMON if a != "probe=null"]
    argv += ["steps=5", "warmup=1", "data.train=40", "data.test=20"]
    monkeypatch.setattr(sys.modules[__name__], "ARGV", argv)
    monkeypatch.setattr(processes, "live", probing)
    stop(tmp_path, signal.SIGTERM)
    assert last_step(tmp_path) == 5
    monkeypatch.setattr(processes, "live", LIVE)
    processes.finish(tmp_path, argv)
    assert (tmp_path / "runs/run/probe.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("every", "words"), [(10, "stopped at step 10"), (20, NOTHING)])
def test_a_probe_on_the_way_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, words: str
) -> None:
    """The step is saved, and the next start makes up for the probe, also at the last step: log and
    bits are those of a run that was not stopped."""
    argv = [a for a in RUNS["vision"] + COMMON if a != "probe=null"]
    argv += ["steps=20", f"probe.every={every}", "data.train=40", "data.test=20"]
    cwd, whole = tmp_path / "stopped", tmp_path / "whole"
    processes.finish(whole, argv)
    monkeypatch.setattr(sys.modules[__name__], "ARGV", argv)
    monkeypatch.setattr(processes, "live", probing)
    stop(cwd, signal.SIGTERM, words)
    assert last_step(cwd) == every
    log = (cwd / "runs/run/metrics.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["step"] == every - 5
    monkeypatch.setattr(processes, "live", LIVE)
    processes.finish(cwd, argv)
    ours, theirs = processes.outcome(cwd), processes.outcome(whole)
    assert list(processes.differences(ours, theirs)) == []
    assert sum(any("probe_" in key for key in line) for line in ours["log"]) == 20 // every


def on_a_terminal(cwd: str, argv: list[str], env: dict[str, str]) -> None:
    """A life whose out.txt is a terminal that it belongs to, as one that a user has typed."""
    os.setsid()
    os.open(os.path.join(cwd, "out.txt"), os.O_RDWR)  # the terminal is now that of this session
    os.setpgrp = lambda: None  # type: ignore[assignment]
    LIVE(cwd, argv, env)


def test_a_terminal_that_closes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGHUP, and nothing can be printed any more: one checkpoint, exit code 85."""
    terminal, device = os.openpty()
    tmp_path.joinpath("out.txt").symlink_to(os.ttyname(device))
    monkeypatch.setattr(processes, "live", on_a_terminal)
    started = processes.start(tmp_path, [*ARGV, "steps=100000"])
    os.close(device)
    os.set_blocking(terminal, False)
    shown = b""

    def ready() -> bool:
        nonlocal shown
        with suppress(OSError):  # nothing to read just now
            shown += os.read(terminal, 1 << 16)
        return processes.trained(tmp_path) >= 12

    assert processes.waits(ready, started), shown.decode()
    os.close(terminal)
    assert processes.ends(started) == [EXIT_REQUEUE]
    assert last_step(tmp_path) >= 6 and not (tmp_path / "runs/run/owner.json").exists()


@pytest.mark.slow
def test_a_pipe_whose_reader_has_ended(tmp_path: Path) -> None:
    """``python train.py … | head``: the run goes on to its end without a screen."""
    processes.texts(tmp_path)
    os.mkfifo(tmp_path / "out.txt")
    started = processes.start(tmp_path, ARGV)
    with (tmp_path / "out.txt").open() as pipe:
        assert pipe.readline()
    assert processes.ends(started) == [0]
    assert last_step(tmp_path) == STEPS


@pytest.mark.parametrize("delay", [0.3, 2.0])
def test_evaluate_prints_no_stack_trace(tmp_path: Path, delay: float) -> None:
    """Ctrl-C while torch is imported, and while it works."""
    command = [sys.executable, "-m", "d2v_pretrain.evaluate", "run=/dev/fd/0/none"]
    where = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **where)  # type: ignore[call-overload]
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=60)[1]
    # A command that has ended with its sentence may be interrupted while Python shuts down.
    text = text.partition("error: run=")[0]
    assert "Traceback" not in text and process.returncode in (-signal.SIGINT, 130, 2), text


def test_a_command_that_is_interrupted_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(words: list[str]) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", ["evaluate", "run=x"])
        options.run(interrupted, Options)
    assert left.value.code == 130
    assert capsys.readouterr().err == "stopped (Ctrl-C)\n"


def test_nohup_is_respected() -> None:
    """A run that was started with nohup does not hear that its terminal closes."""
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    request = StopRequest()
    request.install()
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        assert request.reason is None
    finally:
        request.uninstall()
        signal.signal(signal.SIGHUP, old)


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
