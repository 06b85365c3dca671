"""A run is its name: the same folder, one history, the same id at Weights & Biases, offline too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from d2v_pretrain.training.signals import EXIT_REQUEUE
from tests.resume import processes
from tests.resume.processes import COMMON, RUNS

pytest.importorskip("wandb")


@pytest.mark.slow
def test_one_id_offline_over_several_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    argv = [*RUNS["text"], *COMMON, "logger=wandb"]
    [process] = processes.start(tmp_path, argv)
    assert processes.waits(lambda: processes.trained(tmp_path) >= 9, [process])
    processes.kill(process)
    [process] = processes.start(tmp_path, argv)
    assert processes.waits(lambda: processes.trained(tmp_path) >= 20, [process])
    process.terminate()
    assert processes.ends([process]) == [EXIT_REQUEUE]
    processes.finish(tmp_path, argv)
    folders = sorted((tmp_path / "runs/run/wandb").glob("offline-run-*"))
    assert len(folders) == 3 and {folder.name.rpartition("-")[2] for folder in folders} == {"run"}
    lines = [
        json.loads(line)["step"]
        for line in (tmp_path / "runs/run/metrics.jsonl").read_text().splitlines()
    ]
    assert lines == [1, *range(5, processes.STEPS + 1, 5)]
