"""Lightning's launcher and torchrun: the same bits for as many ranks; a rank that dies is named by
the others."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from d2v_pretrain.training.module import TrainingModule
from tests.ddp.test_ranks import ARGV, TEXT
from tests.resume import processes

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2"]
CPU = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]


def launch(cwd: Path, launcher: list[str], argv: list[str]) -> subprocess.Popen:
    """``python train.py`` as a user types it, or torchrun; what is said goes to out.txt."""
    processes.texts(cwd)
    if launcher:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            launcher = [*launcher, f"--master-port={s.getsockname()[1]}"]
    command = [
        sys.executable,
        *launcher,
        str(ROOT / "train.py"),
        *(a for a in argv if a != "trainer=cpu"),
        *CPU,
    ]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (cwd / "out.txt").open("w") as out:
        return subprocess.Popen(command, cwd=cwd, env=env, stdout=out, stderr=out)


def said(cwd: Path) -> str:
    return (cwd / "out.txt").read_text()


def test_lightning_gives_what_torchrun_gives(tmp_path: Path) -> None:
    one, other = tmp_path / "lightning", tmp_path / "torchrun"
    started = launch(one, [], TEXT), launch(other, TORCHRUN, TEXT)
    assert [process.wait(240) for process in started] == [0, 0], (
        said(one)[-2000:] + said(other)[-2000:]
    )
    assert list(processes.differences(processes.outcome(one), processes.outcome(other))) == []


@pytest.mark.slow
def test_forked_ranks_give_the_same(tmp_path: Path) -> None:
    """What all other tests of several ranks run on is no launcher of its own kind."""
    assert launch(tmp_path / "lightning", [], TEXT).wait(240) == 0
    processes.finish(tmp_path / "forked", TEXT, world=2)
    assert (
        list(
            processes.differences(
                *(processes.outcome(tmp_path / name) for name in ("lightning", "forked"))
            )
        )
        == []
    )


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "rank"), [([], 0), ([], 1), (TORCHRUN, 0), (TORCHRUN, 1)])
def test_a_killed_rank_ends_all_within_a_minute_and_is_named(
    tmp_path: Path, launcher: list[str], rank: int
) -> None:
    process = launch(tmp_path, launcher, [*ARGV, "steps=100000"])
    metrics = tmp_path / "runs/run/metrics.jsonl"
    until = time.monotonic() + 240
    while not metrics.exists() or metrics.read_text().count("\n") < 5:
        assert time.monotonic() < until and process.poll() is None, said(tmp_path)
        time.sleep(0.1)
    ranks = workers(process.pid)
    os.kill(ranks[rank], signal.SIGKILL)
    assert process.wait(60) != 0
    until = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in ranks):
        assert time.monotonic() < until, "a rank outlived the others"
        time.sleep(0.1)
    text = said(tmp_path)
    assert re.search(rf"rank {1 - rank} of 2 on \S+ lost another one \(", text), text[-3000:]
    assert re.search(r"the same command goes on from runs/run/checkpoints/step=\d+.ckpt", text), (
        text[-3000:]
    )
    named = [
        rf"the cause: rank {rank}",
        rf"rank 0, where all meet, does not answer|rank: {rank}\] Child .* code -9",
    ]
    assert re.search("|".join(named), text), text[-3000:]


def workers(pid: int) -> list[int]:
    """Process ids of rank 0 and 1 below a launcher; Lightning's is rank 0 itself."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_text().split("\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        [*rank] = (v.partition("=")[2] for v in variables if v.startswith("LOCAL_RANK="))
        if parent == pid and rank:
            found[int(rank[0])] = int(folder.name)
    found.setdefault(0, pid)
    return [found[0], found[1]]


def failing(cwd: str, argv: list[str], env: dict[str, str]) -> None:
    """A life in which the second rank meets an error of its own at step 4."""
    step = TrainingModule.training_step

    def training_step(module: TrainingModule, batch: Any, batch_idx: int) -> Tensor:
        if module.global_rank == 1 and module.updates == 4:
            raise MemoryError("a very large sample")
        return step(module, batch, batch_idx)

    TrainingModule.training_step = training_step  # type: ignore[method-assign]
    processes.live(cwd, argv, env)


def test_a_failing_rank_leaves_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "live", failing)
    began = time.monotonic()
    assert processes.ends(processes.start(tmp_path, TEXT, world=2)) == [1, 1], said(tmp_path)
    assert time.monotonic() - began < 60
    text = said(tmp_path)
    assert re.search(r"rank 0 of 2 on \S+ lost another one \(", text), text[-3000:]
    assert re.search(
        r"the cause: rank 1 of 2 on \S+ failed \(MemoryError: a very large sample\)", text
    ), text[-3000:]
    assert text.count("the same command goes on from runs/run/checkpoints/step=3.ckpt") == 2
