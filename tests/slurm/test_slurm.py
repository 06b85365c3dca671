"""A real Slurm on this machine, two virtual nodes: every way to be stopped there, and the same bits
at the end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.resume import processes
from tests.resume.processes import RUNS

ROOT = Path(__file__).parents[2]
STEPS = 100
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("slurmctld") or not shutil.which("munged"),
        reason="slurmctld or munged is not installed: "
        "apt-get install --no-install-recommends slurm-wlm munge",
    ),
]
CPU = ["trainer.accelerator=cpu", "trainer.precision=32-true"]
Environment = dict[str, str]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """Environment of a Slurm with two nodes of one core and a partition that preempts; it ends with
    the tests."""
    folder = tmp_path_factory.mktemp("slurm")
    script = str(Path(__file__).with_name("one_machine.sh"))
    preempting = {
        "SLURM_PREEMPT": "60",
        "SLURM_EXTRA": r"PreemptType=preempt/partition_prio\nPreemptMode=REQUEUE",
    }
    subprocess.run(
        [script, "up", str(folder), "2"], check=True, timeout=60, env=os.environ | preempting
    )
    environment = {"SLURM_CONF": str(folder / "slurm.conf"), "MASTER_ADDR": "127.0.0.1"}
    yield {**os.environ, **environment, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    subprocess.run([script, "down", str(folder)], check=True, timeout=60)


@pytest.fixture(scope="module")
def whole(slurm: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks on two nodes that nothing happens to."""
    cwd = tmp_path_factory.mktemp("run") / "whole"
    job = submit(slurm, cwd)
    wait(lambda: state(slurm, job) == "COMPLETED", cwd)
    return cwd


def prepare(cwd: Path, steps: int = STEPS) -> list[str]:
    """A folder to submit from, and what follows `python train.py`."""
    processes.texts(cwd)
    shutil.copy(ROOT / "train.py", cwd)
    common = [a for a in processes.COMMON if not a.startswith(("trainer", "steps"))]
    return [*RUNS["text"], *common, f"steps={steps}", "checkpoint.every_steps=40"]


def submit(slurm: Environment, cwd: Path, *options: str, steps: int = STEPS) -> str:
    """slurm/many_nodes.sbatch with a task on each node."""
    return sbatch(slurm, cwd, "many_nodes", ["--nodes=2", *options], [*prepare(cwd, steps), *CPU])


def sbatch(
    slurm: Environment, cwd: Path, script: str, options: list[str], arguments: list[str]
) -> str:
    command = [
        "sbatch",
        "--parsable",
        "--cpus-per-task=1",
        "--time=20",
        "--output=out.txt",
        *options,
    ]
    command += [str(ROOT / f"slurm/{script}.sbatch"), *arguments]
    return subprocess.run(
        command, cwd=cwd, env=slurm, check=True, capture_output=True, text=True
    ).stdout.strip()


def ask(slurm: Environment, *command: str) -> str:
    return subprocess.run(command, env=slurm, capture_output=True, text=True, timeout=30).stdout


def state(slurm: Environment, job: str) -> str:
    return ask(slurm, "scontrol", "show", "job", job).partition("JobState=")[2].partition(" ")[0]


def said(cwd: Path) -> str:
    return (cwd / "out.txt").read_text() if (cwd / "out.txt").exists() else ""


def wait(condition: Callable[[], bool], cwd: Path, seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, said(cwd)[-3000:]
        time.sleep(0.1)


def trains(cwd: Path, name: str = "run") -> None:
    """Wait until a run has written a few lines of metrics."""
    metrics = cwd / f"runs/{name}/metrics.jsonl"
    wait(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3, cwd)


def goes_on(slurm: Environment, job: str, cwd: Path) -> None:
    """Wait for the requeue, start the job again now and not in two minutes, wait for its end."""
    wait(lambda: state(slurm, job) == "PENDING", cwd, 120)
    time.sleep(2)  # sooner, Slurm revokes the credential of the job that it starts
    ask(slurm, "scontrol", "update", f"jobid={job}", "StartTime=now", "TimeLimit=20")
    wait(lambda: state(slurm, job) == "COMPLETED", cwd)


def same(cwd: Path, whole: Path) -> None:
    """It was stopped and went on, once, and that changed nothing."""
    assert said(cwd).count("stopped at step") == said(cwd).count("going on from") == 1, said(cwd)[
        -3000:
    ]
    assert list(processes.differences(processes.outcome(cwd), processes.outcome(whole))) == []


def test_signalled_requeued_resumed(slurm: Environment, whole: Path, tmp_path: Path) -> None:
    job = submit(slurm, tmp_path)
    trains(tmp_path)
    ask(slurm, "scancel", "--signal=USR1", job)
    goes_on(slurm, job, tmp_path)
    same(tmp_path, whole)


def test_scancel_is_not_requeued(slurm: Environment, tmp_path: Path) -> None:
    job = submit(slurm, tmp_path)
    trains(tmp_path)
    ask(slurm, "scancel", job)
    wait(lambda: state(slurm, job) == "CANCELLED", tmp_path, 60)
    time.sleep(5)
    assert state(slurm, job) == "CANCELLED"


def test_time_limit(slurm: Environment, tmp_path: Path) -> None:
    """Slurm itself sends the signal of ``--signal``; it looks at time limits twice a minute."""
    cwd, whole = tmp_path / "stopped", tmp_path / "whole"
    job = submit(slurm, cwd, "--time=1", "--signal=USR1@50", steps=1500)
    trains(cwd)
    goes_on(slurm, job, cwd)
    assert "(SIGUSR1)" in said(cwd)
    job = submit(slurm, whole, steps=1500)
    wait(lambda: state(slurm, job) == "COMPLETED", whole)
    same(cwd, whole)


def test_preempted(slurm: Environment, whole: Path, tmp_path: Path) -> None:
    """A job of a higher partition wants the nodes: SIGTERM at once, requeue, and on when it is
    over."""
    job = submit(slurm, tmp_path)
    trains(tmp_path)
    high = [
        "sbatch",
        "--parsable",
        "--partition=high",
        "--nodes=2",
        "--output=/dev/null",
        "--wrap=sleep 1",
    ]
    subprocess.run(high, env=slurm, check=True, capture_output=True)
    goes_on(slurm, job, tmp_path)
    assert "(SIGTERM)" in said(tmp_path)
    same(tmp_path, whole)


def test_a_dead_task_ends_the_job_with_its_name(slurm: Environment, tmp_path: Path) -> None:
    job = submit(slurm, tmp_path)
    trains(tmp_path)
    os.kill(task(job, 1), signal.SIGKILL)
    wait(lambda: state(slurm, job) == "FAILED", tmp_path, 60)
    text = said(tmp_path)
    assert (
        "rank 0 of 2" in text
        and "lost another one" in text
        and "the same command goes on from" in text
    )
    assert "the cause: rank 1 does not answer" in text and "task 1: Killed" in text


def task(job: str, rank: int) -> int:
    """Process id of a task of a job."""
    wanted = {f"SLURM_JOB_ID={job}", f"SLURM_PROCID={rank}", "SLURM_STEP_ID=0"}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted <= set((folder / "environ").read_text().split("\0")):
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError(f"job {job} has no task {rank}")


def test_preflight_refuses_before_anything_waits(slurm: Environment, tmp_path: Path) -> None:
    arguments = [*prepare(tmp_path), "trainer=cpu"]
    job = sbatch(
        slurm,
        tmp_path,
        "many_nodes",
        ["--nodes=2"],
        [*arguments, "trainer.devices=1", "trainer.num_nodes=1"],
    )
    wait(lambda: state(slurm, job) == "FAILED", tmp_path, 120)
    assert "trainer.num_nodes=1 does not fit: Slurm has started 2 x 1" in said(tmp_path)
    assert "trainer=ddp trainer.devices=1 trainer.num_nodes=2" in said(tmp_path)


def test_array(slurm: Environment, tmp_path: Path) -> None:
    """Two runs that differ in nothing but their names; one is stopped and goes on, by itself."""
    arguments = " ".join(a for a in prepare(tmp_path) if not a.startswith("name="))
    lines = [f"name={name} trainer=cpu {arguments}" for name in ("first", "second")]
    (tmp_path / "runs.txt").write_text("\n".join(lines) + "\n")
    job = sbatch(slurm, tmp_path, "array", ["--array=1-2", "--output=out_%a.txt"], ["runs.txt"])
    trains(tmp_path, "second")
    ask(slurm, "scancel", "--signal=USR1", f"{job}_2")
    goes_on(slurm, f"{job}_2", tmp_path)
    wait(lambda: state(slurm, f"{job}_1") == "COMPLETED", tmp_path)
    assert "going on from" in (tmp_path / "out_2.txt").read_text()
    assert "going on from" not in (tmp_path / "out_1.txt").read_text()
    assert (
        list(
            processes.differences(
                *(processes.outcome(tmp_path, name) for name in ("first", "second"))
            )
        )
        == []
    )


def test_sweep_by_submitit(slurm: Environment, tmp_path: Path) -> None:
    """`-m hydra/launcher=slurm`: one of two jobs gets submitit's signal, which we hand on once all
    is saved."""
    pytest.importorskip(
        "hydra_plugins.hydra_submitit_launcher", reason="pip install 'd2v-pretrain[slurm]'"
    )
    arguments = [a for a in prepare(tmp_path) if not a.startswith("name=")]
    small = ["gpus_per_node=null", "cpus_per_task=1", "timeout_min=30", "mem_gb=1"]
    launcher = ["hydra/launcher=slurm", *(f"hydra.launcher.{key}" for key in small)]
    command = [
        sys.executable,
        "train.py",
        "-m",
        *launcher,
        *arguments,
        "trainer=cpu",
        "name=first,second",
    ]
    with (tmp_path / "out.txt").open("w") as out:
        sweep = subprocess.Popen(command, cwd=tmp_path, env=slurm, stdout=out, stderr=out)
        trains(tmp_path, "second")
        [job] = {line.partition("_")[0] for line in ask(slurm, "squeue", "-h", "-o", "%i").split()}
        ask(slurm, "scancel", "--signal=USR2", f"{job}_1")
        goes_on(slurm, f"{job}_1", tmp_path)
        assert sweep.wait(120) == 0, said(tmp_path)
    log = "".join(path.read_text() for path in (tmp_path / "runs/.sweeps").rglob("*.out"))
    assert "stopped at step" in log and "going on from" in log
    assert (
        list(
            processes.differences(
                *(processes.outcome(tmp_path, name) for name in ("first", "second"))
            )
        )
        == []
    )
