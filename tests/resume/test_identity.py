"""A run is its name: the same folder, one history, the same id at Weights & Biases, offline too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from d2v_pretrain.stopping import AGAIN
from tests.resume import lives
from tests.resume.lives import COMMON, RUNS

pytest.importorskip("wandb")


@pytest.mark.slow
def test_one_id_offline_over_several_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    argv = [*RUNS["text"], *COMMON, "logger=wandb"]
    [process] = lives.start(tmp_path, argv)
    assert lives.waits(lambda: lives.trained(tmp_path) >= 9, [process])
    lives.kill(process)
    [process] = lives.start(tmp_path, argv)
    assert lives.waits(lambda: lives.trained(tmp_path) >= 20, [process])
    process.terminate()
    assert lives.ends([process]) == [AGAIN]
    lives.finish(tmp_path, argv)
    folders = sorted((tmp_path / "runs/run/wandb").glob("offline-run-*"))
    assert len(folders) == 3 and {folder.name.rpartition("-")[2] for folder in folders} == {"run"}
    lines = [json.loads(line)["step"] for line in (tmp_path / "runs/run/metrics.jsonl").read_text().splitlines()]
    assert lines == [1, *range(5, lives.STEPS + 1, 5)]
