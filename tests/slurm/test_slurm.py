"""A real Slurm on this machine: submit, signal, requeue, resume on two tasks of two virtual nodes; the same bits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.resume import lives
from tests.resume.lives import RUNS

ROOT = Path(__file__).parents[2]
STEPS = 60
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("slurmctld") or not shutil.which("munged"),
        reason="slurmctld or munged is not installed: apt-get install --no-install-recommends slurm-wlm munge",
    ),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of a Slurm with two nodes, which ends with the tests."""
    folder = tmp_path_factory.mktemp("slurm")
    script = str(Path(__file__).with_name("one_machine.sh"))
    subprocess.run([script, "up", str(folder), "2"], check=True, timeout=60)
    environment = {"SLURM_CONF": str(folder / "slurm.conf"), "MASTER_ADDR": "127.0.0.1"}
    yield {**os.environ, **environment, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    subprocess.run([script, "down", str(folder)], check=True, timeout=60)


def arguments(cwd: Path) -> list[str]:
    cwd.mkdir()
    (cwd / "texts").mkdir()
    (cwd / "texts" / "a.txt").write_text("\n\n".join(lives._sentences()))
    shutil.copy(ROOT / "train.py", cwd)
    common = [a for a in lives.COMMON if not a.startswith(("trainer", "steps"))]
    cpu = ["trainer.accelerator=cpu", "trainer.precision=32-true"]
    return [*RUNS["text"], *common, *cpu, f"steps={STEPS}", "checkpoint.every_steps=20"]


def submit(slurm: dict[str, str], cwd: Path, argv: list[str]) -> str:
    command = ["sbatch", "--parsable", "--nodes=2", "--cpus-per-task=1", "--time=10", "--output=out.txt"]
    script = str(ROOT / "slurm/many_nodes.sbatch")
    done = subprocess.run([*command, script, *argv], cwd=cwd, env=slurm, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def ask(slurm: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=slurm, capture_output=True, text=True, timeout=30).stdout


def state(slurm: dict[str, str], job: str) -> str:
    text = ask(slurm, "scontrol", "show", "job", job)
    return text.partition("JobState=")[2].partition(" ")[0]


def wait(condition: Callable[[], bool], seconds: float, said: Path) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, said.read_text()[-3000:] if said.exists() else "nothing was printed"
        time.sleep(0.1)


def test_signalled_requeued_resumed(slurm: dict[str, str], tmp_path: Path) -> None:
    whole, cwd = tmp_path / "whole", tmp_path / "stopped"
    job = submit(slurm, whole, arguments(whole))
    wait(lambda: state(slurm, job) == "COMPLETED", 240, whole / "out.txt")

    job = submit(slurm, cwd, arguments(cwd))
    metrics = cwd / "runs/run/metrics.jsonl"
    wait(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3, 240, cwd / "out.txt")
    ask(slurm, "scancel", "--signal=USR1", job)
    wait(lambda: state(slurm, job) == "PENDING", 60, cwd / "out.txt")
    assert "stopped at step" in (cwd / "out.txt").read_text()
    time.sleep(2)  # sooner, Slurm revokes the credential of the job that it starts
    ask(slurm, "scontrol", "update", f"jobid={job}", "StartTime=now")  # instead of in two minutes
    wait(lambda: state(slurm, job) == "COMPLETED", 240, cwd / "out.txt")
    assert "going on from" in (cwd / "out.txt").read_text()
    assert list(lives.differences(lives.outcome(cwd), lives.outcome(whole))) == []


def test_scancel_is_not_requeued(slurm: dict[str, str], tmp_path: Path) -> None:
    cwd = tmp_path / "cancelled"
    job = submit(slurm, cwd, arguments(cwd))
    wait(lambda: (cwd / "runs/run/metrics.jsonl").exists(), 240, cwd / "out.txt")
    ask(slurm, "scancel", job)
    wait(lambda: state(slurm, job) == "CANCELLED", 60, cwd / "out.txt")
    time.sleep(5)
    assert state(slurm, job) == "CANCELLED"
