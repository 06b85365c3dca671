"""Commands on a finished run: features of a folder, the probe again, what people type wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from d2v_pretrain import evaluate as reprobe
from d2v_pretrain import export, extract
from d2v_pretrain.checkpoint.saved_run import Run
from d2v_pretrain.config import options as commands
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.evaluation.probe import features
from d2v_pretrain.types import Batch

Runs = Callable[[str], Run]


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Three wav files of different length, one that is none, and a table of classes."""
    draw, folder = np.random.default_rng(1), tmp_path / "sounds"
    folder.mkdir()
    for n in range(12):
        wave = draw.standard_normal(4000 + 500 * n) * 0.1
        soundfile.write(folder / f"{n:02}.wav", wave.astype(np.float32), 16000)
    rows = [f"{n:02}.wav\t{'ab'[n % 2]}\t{'train' if n < 8 else 'test'}" for n in range(12)]
    (folder / "labels.tsv").write_text("\n".join(["file\tkind\tsplit", *rows]) + "\n")
    return folder


def test_features_of_sounds(sounds: Path, trained: Runs, tmp_path: Path) -> None:
    run = trained("audio1")
    words = [f"run={run.folder}", f"data.root={sounds}", "layers=1"]
    folder = extract.main([*words, f"output={tmp_path / 'mean'}"])
    rows, names = np.load(folder / "features.npy"), (folder / "names.txt").read_text().splitlines()
    assert names == sorted(map(str, sounds.glob("*.wav"))) and rows.shape == (12, 32)
    wave, _ = soundfile.read(names[3], dtype="float32")
    alone = torch.nn.functional.layer_norm(torch.from_numpy(wave), wave.shape)[None]
    encoder = run.encoder("teacher")
    with torch.no_grad():
        expected = encoder.encode(Batch(alone, torch.arange(1))).tokens
    np.testing.assert_allclose(rows[3], expected.mean(1)[0], atol=1e-5)
    tokens = np.load(
        extract.main([*words, "pool=none", f"output={tmp_path / 'none'}"]) / "00000003.npy"
    )
    np.testing.assert_allclose(tokens, expected[0], atol=1e-5)
    student = extract.main([*words, "which=student", f"output={tmp_path / 'student'}"])
    assert not np.allclose(np.load(student / "features.npy"), rows, atol=1e-2)


def test_features_of_images(trained: Runs, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for n in range(3):
        pixels = np.random.default_rng(n).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{n}.png")
    run = trained("small_vision2")
    folder = extract.main([f"run={run.folder}", f"data.root={images}", f"output={tmp_path / 'i'}"])
    source = run.transform([f"data.root={images}"], tmp_path)
    batch = Batch(torch.stack(list(source.plain())), torch.arange(3))
    expected, _ = features(run.encoder("teacher"), [batch])
    np.testing.assert_allclose(np.load(folder / "features.npy"), expected, atol=1e-5)


def test_features_of_text(trained: Runs, tmp_path: Path) -> None:
    run = trained("text2")
    (tmp_path / "lines.txt").write_text("one line\n\nanother line of text\n")
    words = [f"run={run.folder}", f"data.root={tmp_path / 'lines.txt'}", "pool=none"]
    if not (run.folder / "tokenizer.json").exists():
        with pytest.raises(ConfigError, match="one trained on other data would give other ids"):
            extract.main([*words, f"output={tmp_path / 't'}"])
        assert run.transform([], tmp_path).vocabulary.size == 300
    folder = extract.main([*words, f"output={tmp_path / 't'}"])
    assert (folder / "names.txt").read_text().split() == ["0", "1"]
    ids = next(run.transform([], tmp_path).vocabulary.encode(["one line"]))
    with torch.no_grad():
        expected = run.encoder("teacher").encode(
            Batch(torch.tensor([[0, *ids, 2]]), torch.arange(1)), 1, "block"
        )
    np.testing.assert_allclose(np.load(folder / "00000000.npy"), expected.layers[0][0], atol=1e-5)
    assert len(np.load(folder / "00000001.npy")) > len(ids) + 2


def test_the_probe_again_on_other_data(
    sounds: Path, trained: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("audio1")
    labels = [
        f"data.labels={sounds / 'labels.tsv'}",
        "data.label_column=kind",
        "data.split_column=split",
    ]
    file = reprobe.main(
        [f"run={run.folder}", f"data.root={sounds}", *labels, "data.test_values=[test]"]
    )
    report = json.loads(file.read_text())
    assert (
        file.name == "probe_teacher_7.json" and report["step"] == 7 and report["which"] == "teacher"
    )
    assert {"floor", "random", "pretrained"} == report["linear"].keys() and report["test"] == 4
    assert "Probe 'kind'" in capsys.readouterr().out


@pytest.mark.parametrize(
    "typed, sentence",
    [
        (["data.root=nowhere"], "nowhere"),
        (["data=folder"], "data.root=??? has no value"),
        (["data.root={}", "layers=3"], "layers=3 must be from 1 to 2"),
        (["data.root={}", "pool=max"], "pool=max must be one of mean, none"),
        (["data.root={}", "poool=mean"], "did you mean pool?"),
    ],
)
def test_wrong_words(
    typed: list[str], sentence: str, sounds: Path, trained: Runs, tmp_path: Path
) -> None:
    words = [
        f"run={trained('audio1').folder}",
        f"output={tmp_path / 'out'}",
        *(w.format(sounds) for w in typed),
    ]
    with pytest.raises(ConfigError) as error:
        extract.main(words)
    assert sentence in str(error.value)


def test_data_without_labels(sounds: Path, trained: Runs) -> None:
    with pytest.raises(ConfigError, match="has no labels to probe"):
        reprobe.main([f"run={trained('audio1').folder}", f"data.root={sounds}"])


@pytest.mark.parametrize(
    "command, typed, line",
    [
        (extract, "run={run} output=out data.rot=x", "data.rot"),
        (extract, "run={run} output=out data=foldr", "data=foldr"),
        (export, "run=none", "error: run=none is no folder"),
    ],
)
def test_a_mistake_is_one_line(
    command: Any, typed: str, line: str, trained: Runs, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(
        "sys.argv", ["command", *typed.format(run=trained("audio1").folder).split()]
    )
    with pytest.raises(SystemExit) as stop:
        commands.run(command.main, command.Options)
    errors = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(errors) == 1 and line in errors[0], errors


def test_usage(tmp_path: Path) -> None:
    """``evaluate`` is a module of functions and a command: this one in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "d2v_pretrain.evaluate"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "run=…" in done.stdout, done.stderr
