"""Two processes of one name: one trains, the other is refused or waits, and the log has every step
once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from d2v_pretrain.checkpoint import owner, ownership
from d2v_pretrain.checkpoint.file import newest_valid, step_of
from d2v_pretrain.training.signals import EXIT_REQUEUE
from tests.resume import processes
from tests.resume.processes import COMMON, RUNS

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "tests/ddp/two_nodes.sh")
ARGV = [*RUNS["text"], *COMMON, "steps=100000", "log_every=1"]
LIVE = processes.live


def said(cwd: Path) -> str:
    return (cwd / "out.txt").read_text() if (cwd / "out.txt").exists() else ""


def check(cwd: Path) -> None:
    """Every step is in the log once, in order; no step was trained in two ways; checkpoints are
    whole."""
    log = (cwd / "runs/run/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in log]
    assert steps == list(range(1, len(steps) + 1))
    assert processes.history(cwd)
    last, rejected = newest_valid(cwd / "runs/run/checkpoints")
    assert last is not None and not rejected and step_of(last) == steps[-1]
    assert not (cwd / "runs/run/owner.json").exists()


def test_typed_twice(tmp_path: Path) -> None:
    """Of two at the same moment one trains. A third, typed when that one was told to stop, waits
    until it has saved, and goes on."""
    two = processes.start(tmp_path, ARGV) + processes.start(tmp_path, ARGV)
    assert processes.waits((tmp_path / "runs/run/owner.json").exists, two)
    began = time.monotonic()
    while all(process.is_alive() for process in two):
        assert time.monotonic() - began < 60
        time.sleep(0.05)
    [refused] = [process for process in two if not process.is_alive()]
    [training] = [process for process in two if process is not refused]
    assert refused.exitcode == 2 and time.monotonic() - began < 20  # about 4 on a machine at rest
    [line] = [line for line in said(tmp_path).splitlines() if line.startswith("error")]
    assert f"process {training.pid} on" in line and "name=…" in line
    assert processes.waits(lambda: processes.trained(tmp_path) >= 8, [training])
    training.terminate()
    third = processes.start(tmp_path, ARGV)
    assert processes.ends([training]) == [EXIT_REQUEUE]
    assert processes.waits(lambda: said(tmp_path).count("going on from") == 1, third)
    goal = processes.trained(tmp_path) + 8
    assert processes.waits(lambda: processes.trained(tmp_path) >= goal, third)
    third[0].terminate()
    assert processes.ends(third) == [EXIT_REQUEUE], said(tmp_path)
    check(tmp_path)


@pytest.mark.slow
def test_a_job_on_two_ranks_waits_for_its_earlier_launch(tmp_path: Path) -> None:
    """As when torchrun or Slurm starts it again while the first launch still runs: all of its ranks
    go on from what the first one has saved at last."""
    first = processes.start(tmp_path, ARGV, world=2)
    assert processes.waits(lambda: processes.trained(tmp_path) >= 4, first), said(tmp_path)
    second = processes.start(tmp_path, ARGV, world=2)
    assert processes.waits(lambda: "waiting for process" in said(tmp_path), second)
    first[1].terminate()
    assert processes.ends(first) == [EXIT_REQUEUE, 0], said(tmp_path)
    at = step_of(newest_valid(tmp_path / "runs/run/checkpoints")[0])  # type: ignore[arg-type]
    assert processes.waits(lambda: "going on from" in said(tmp_path), second)
    assert f"step {at} of" in said(tmp_path)
    goal = processes.trained(tmp_path) + 4
    assert processes.waits(lambda: processes.trained(tmp_path) >= goal, second)
    second[0].terminate()
    assert processes.ends(second) == [EXIT_REQUEUE, 0], said(tmp_path)
    check(tmp_path)


def elsewhere(cwd: str, argv: list[str], env: dict[str, str]) -> None:
    """A life on another machine, to which ids of processes say nothing."""
    ownership.this_machine = owner.this_machine = lambda: "elsewhere"
    ownership.STALE = 2.0
    LIVE(cwd, argv, env)


@pytest.mark.slow
def test_a_suspended_owner_that_was_replaced_stops_without_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [first] = processes.start(tmp_path, ARGV)
    assert processes.waits(lambda: processes.trained(tmp_path) >= 20, [first])
    os.kill(first.pid, signal.SIGSTOP)  # type: ignore[arg-type]
    time.sleep(2 + ownership.HEARTBEAT)
    monkeypatch.setattr(processes, "live", elsewhere)
    [second] = processes.start(tmp_path, ARGV)
    goal = processes.trained(tmp_path) + 20
    assert processes.waits(lambda: processes.trained(tmp_path) >= goal, [second]), said(tmp_path)
    os.kill(first.pid, signal.SIGCONT)  # type: ignore[arg-type]
    assert processes.ends([first]) == [2], said(tmp_path)
    assert "no longer belongs to this process" in said(tmp_path)
    goal = processes.trained(tmp_path) + 8
    assert processes.waits(lambda: processes.trained(tmp_path) >= goal, [second])
    second.terminate()
    assert processes.ends([second]) == [EXIT_REQUEUE], said(tmp_path)
    check(tmp_path)


def test_a_start_that_waits_hears_a_signal(tmp_path: Path) -> None:
    (tmp_path / "runs/run").mkdir(parents=True)
    file = tmp_path / "runs/run/owner.json"
    other = replace(owner.this_process(), id="other", machine="elsewhere", stopping=True)
    file.write_text(json.dumps(asdict(other)))
    started = processes.start(tmp_path, ARGV)
    assert processes.waits(lambda: "waiting for process" in said(tmp_path), started)
    started[0].terminate()
    assert processes.ends(started) == [EXIT_REQUEUE], said(tmp_path)
    assert list((tmp_path / "runs/run").iterdir()) == [file]


@pytest.fixture
def nodes() -> Iterator[str]:
    """The name of a pair of nodes."""
    name = f"o{os.getpid() % 10000}n"
    up = shutil.which("ip") and shutil.which("unshare")
    if not up or subprocess.run([SCRIPT, "up", name], capture_output=True).returncode:
        subprocess.run([SCRIPT, "down", name], capture_output=True)
        pytest.skip("network namespaces take root, iproute2 and unshare")
    yield name
    subprocess.run([SCRIPT, "down", name], check=True)


def on_node(nodes: str, node: int, cwd: Path, job: str) -> subprocess.Popen:
    """The run on one of two nodes, which share a disk but no ids of processes."""
    processes.texts(cwd)
    command = [SCRIPT, "run", nodes, str(node), "unshare", "--pid", "--fork", "--kill-child"]
    command += ["--mount-proc", sys.executable, str(ROOT / "train.py"), *ARGV]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SLURM_JOB_ID": job}
    with (cwd / "out.txt").open("a") as out:
        return subprocess.Popen(command, cwd=cwd, env=env, stdout=out, stderr=out)


@pytest.mark.slow
def test_two_nodes_with_one_disk(nodes: str, tmp_path: Path) -> None:
    """Another job is refused within seconds. The same job, requeued because the first node has
    died, waits until that one has been silent for a minute, and goes on."""
    metrics = tmp_path / "runs/run/metrics.jsonl"

    def lines(count: int) -> bool:
        return metrics.exists() and metrics.read_text().count("\n") >= count

    first = on_node(nodes, 1, tmp_path, "7")
    until = time.monotonic() + 120
    while not lines(10):
        assert time.monotonic() < until and first.poll() is None, said(tmp_path)
        time.sleep(0.1)
    began = time.monotonic()
    assert on_node(nodes, 2, tmp_path, "8").wait(60) == 2, said(tmp_path)
    assert time.monotonic() - began < 20 and "Slurm job 7 trains there" in said(tmp_path)
    first.kill()
    first.wait()
    requeued = on_node(nodes, 2, tmp_path, "7")
    try:
        until = time.monotonic() + ownership.STALE + 60
        while "going on from" not in said(tmp_path):
            assert time.monotonic() < until and requeued.poll() is None, said(tmp_path)
            time.sleep(0.1)
        assert "waiting for process" in said(tmp_path)
        assert time.monotonic() - began > ownership.STALE - 2 * ownership.HEARTBEAT
    finally:
        requeued.kill()
        requeued.wait()
