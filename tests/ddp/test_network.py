"""Two network namespaces as two nodes, with torchrun: the bits of two ranks at home; a cut cable
ends both sides."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ddp.test_ranks import ARGV, TEXT
from tests.resume import processes

ROOT = Path(__file__).parents[2]
SCRIPT = str(Path(__file__).with_name("two_nodes.sh"))
TIMEOUT = 12  # seconds
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
MEET = ["--master-addr=10.77.0.1", "--master-port=29500"]
TRAINER = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=2"]
TRAINER += ["trainer.precision=32-true", f"trainer.strategy.timeout.count={TIMEOUT / 60}"]


@pytest.fixture
def nodes() -> Iterator[str]:
    """The name of a pair of nodes."""
    name = f"d{os.getpid() % 10000}n"
    if (
        shutil.which("ip") is None
        or subprocess.run([SCRIPT, "up", name], capture_output=True).returncode
    ):
        subprocess.run([SCRIPT, "down", name], capture_output=True)
        pytest.skip("network namespaces take root and iproute2")
    yield name
    subprocess.run([SCRIPT, "down", name], check=True)


def start(nodes: str, cwd: Path, argv: list[str]) -> list[subprocess.Popen]:
    """The same command on both nodes, which share a disk; what they say is in node1.txt and
    node2.txt."""
    processes.texts(cwd)
    argv = [*(a for a in argv if a != "trainer=cpu"), *TRAINER]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = []
    for node in (1, 2):
        command = [SCRIPT, "run", nodes, str(node), *TORCHRUN, f"--node-rank={node - 1}", *MEET]
        with (cwd / f"node{node}.txt").open("w") as out:
            command += [str(ROOT / "train.py"), *argv]
            started.append(subprocess.Popen(command, cwd=cwd, env=env, stdout=out, stderr=out))
    return started


@pytest.mark.slow
def test_two_nodes_train_what_two_ranks_train(nodes: str, tmp_path: Path) -> None:
    far, near = tmp_path / "far", tmp_path / "near"
    codes = [process.wait(240) for process in start(nodes, far, TEXT)]
    assert codes == [0, 0], (far / "node1.txt").read_text()[-3000:]
    processes.finish(near, TEXT, world=2)
    assert list(processes.differences(processes.outcome(far), processes.outcome(near))) == []


@pytest.mark.slow
def test_a_cut_link_ends_both_sides_with_a_cause(nodes: str, tmp_path: Path) -> None:
    started = start(nodes, tmp_path, [*ARGV, "steps=100000"])
    try:
        metrics, until = tmp_path / "runs/run/metrics.jsonl", time.monotonic() + 240
        while not metrics.exists() or metrics.read_text().count("\n") < 5:
            assert time.monotonic() < until and None in [p.poll() for p in started]
            time.sleep(0.2)
        subprocess.run([SCRIPT, "cut", nodes], check=True)
        codes = [process.wait(TIMEOUT + 60) for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(codes)
    texts = [(tmp_path / f"node{node}.txt").read_text() for node in (1, 2)]
    for rank, text in enumerate(texts):
        assert re.search(rf"rank {rank} of 2 on \S+ lost another one \(.*[Tt]imed out", text), text[
            -3000:
        ]
        assert "the same command goes on from" in text
    assert "the cause: rank 1 does not answer" in texts[0], texts[0][-3000:]
    assert "rank 0, where all meet, does not answer" in texts[1], texts[1][-3000:]
