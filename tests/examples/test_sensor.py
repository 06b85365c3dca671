"""examples/sensor: a modality from outside trains, probes, resumes and is exported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from d2v_pretrain.types import Batch
from d2v_pretrain.weights import bundle

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "sensor"
SMALL = ["steps=6", "log_every=1", "checkpoint.every_steps=3", "global_batch=8", "micro_batch=4"]
SMALL += ["data.items=40", "data.train=60", "data.test=30", "trainer=cpu"]
SMALL += ["name=sensor_data2vec2_tiny"]


def python(cwd: Path, *words: str) -> str:
    env = os.environ | {"PYTHONPATH": f"{EXAMPLE}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train(cwd: Path, *words: str) -> str:
    conf = f"conf={EXAMPLE / 'conf'}"
    return python(cwd, str(ROOT / "train.py"), conf, "modality=sensor", *SMALL, *words)


def test_it_is_short() -> None:
    files = [EXAMPLE / "sensor.py", *EXAMPLE.glob("conf/*/*.yaml")]
    lines = [line for file in files for line in file.read_text().splitlines() if line.strip()]
    assert len(files) == 5 and len(lines) <= 100


def test_it_trains_resumes_probes_and_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, half = tmp_path / "whole", tmp_path / "half"
    whole.mkdir(), half.mkdir()
    train(whole)
    run = whole / "runs" / "sensor_data2vec2_tiny"
    probe = json.loads((run / "probe.json").read_text())
    assert probe["task"] == "gestures" and set(probe["few_shot"]) == {
        "floor",
        "random",
        "pretrained",
    }

    train(half)  # then as if killed after step 3: nothing newer is left
    again = half / "runs" / "sensor_data2vec2_tiny"
    for name in ("last.ckpt", "step=6.ckpt"):
        (again / "checkpoints" / name).unlink()
    assert "going on from" in train(half)
    first, second = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (run, again)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)

    words = ["run=sensor_data2vec2_tiny", "trust=sensor"]
    assert "gestures" in python(whole, "-m", "d2v_pretrain.evaluate", *words)
    python(whole, "-m", "d2v_pretrain.export", *words, "format=bundle", "output=out")
    monkeypatch.syspath_prepend(str(EXAMPLE))
    with pytest.raises(ValueError, match="describes no encoder that can be built"):
        bundle.load(whole / "out")
    encoder = bundle.load(whole / "out", trust=["sensor"])
    tokens = encoder.encode(Batch(torch.randn(2, 3, 200), torch.arange(2))).tokens
    assert tokens.shape == (2, 25, 64)


def test_its_mask_and_data_are_for_other_runs_as_far_as_they_fit(tmp_path: Path) -> None:
    conf = f"conf={EXAMPLE / 'conf'}"
    shown = python(tmp_path, str(ROOT / "train.py"), conf, "modality=audio", "masking=window",
                   "--cfg", "job")  # fmt: skip
    assert "_target_: sensor.WindowMask" in shown
    with pytest.raises(AssertionError, match=r"holds items of kind sensor.*takes waveform"):
        python(tmp_path, str(ROOT / "train.py"), conf, "modality=audio", "data=sensor_sample")
