"""The Python door: what load() gives for what is in hand equals what extract writes; pretrain()
twice in one process."""

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

import d2v_pretrain as d2v
from d2v_pretrain import extract
from d2v_pretrain.api import _spelled, _words
from d2v_pretrain.checkpoint.saved_run import Run
from d2v_pretrain.config import compose
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.evaluation import probe
from d2v_pretrain.export import PREPARATION, export

Runs = Callable[[str], Run]
ROOT = Path(__file__).parents[2]
SENTENCES = ["one line of text", "another, longer line of text ∑"]
TINY = {
    "encoder": {"width": 32, "depth": 3, "heads": 2},
    "objective": {"clones": 2, "predictor": {"dim": 32}},
    "objective.targets.top_k": 2,
    "micro_batch": 2,
    "global_batch": 4,
    "log_every": 1,
    "trainer": "cpu",
    "transform.vocab_size": 400,
}


def waves() -> list[np.ndarray]:
    draw = np.random.default_rng(3)
    return [draw.standard_normal(n).astype(np.float32) * 0.1 for n in (9000, 12000, 9000)]


def pictures() -> list[np.ndarray]:
    """(H, W, 3) uint8 of different proportions."""
    draw = np.random.default_rng(4)
    return [draw.integers(0, 255, (h, w, 3), dtype=np.uint8) for h, w in ((40, 60), (64, 50))]


def written(kind: str, folder: Path) -> list[Any]:
    """Items in hand, and the same as files in ``folder``."""
    folder.mkdir()
    if kind == "audio":
        for n, wave in enumerate(waves()):
            soundfile.write(folder / f"{n}.wav", wave, 16000, subtype="FLOAT")
        return waves()
    if kind == "vision":
        for n, picture in enumerate(pictures()):
            Image.fromarray(picture).save(folder / f"{n}.png")
        return pictures()
    (folder / "text.txt").write_text("\n\n".join(SENTENCES))
    return SENTENCES


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("audio1", "audio"),
        ("audio2", "audio"),
        ("vision1", "vision"),
        ("small_vision2", "vision"),
        ("text1", "text"),
        ("small_text2", "text"),
    ],
)
def test_every_form_of_a_run_gives_what_extract_writes(
    name: str, kind: str, trained: Runs, tmp_path: Path
) -> None:
    run = trained(name)
    if kind == "text":
        assert run.transform([], tmp_path).vocabulary.size == 300, "the run has its tokenizer"
    items = written(kind, tmp_path / "files")
    root = tmp_path / "files" / ("text.txt" if kind == "text" else "")
    words = [f"run={run.folder}", f"data.root={root}", "pool=none"]
    folder = extract.main([*words, f"output={tmp_path / 'features'}"])
    expected = [np.load(file) for file in sorted(folder.glob("*.npy"))]
    exports = [export(run, "teacher", f, str(tmp_path / f)) for f in ("hf", "bundle")]
    for path in (run.folder, run.file, *exports):
        model = d2v.load(path)
        features = model.encoder(items)
        assert features.lengths.tolist() == [len(tokens) for tokens in expected]
        assert features.x.shape == (len(items), max(map(len, expected)), 32)
        for tokens, wanted in zip(features, expected, strict=True):
            np.testing.assert_allclose(tokens, wanted, atol=1e-5)
        alone = model.encoder(items[0])
        assert len(alone) == 1
        torch.testing.assert_close(alone.x[0], torch.from_numpy(expected[0]), atol=1e-5, rtol=0)
        means = torch.stack([torch.from_numpy(tokens).mean(0) for tokens in expected])
        torch.testing.assert_close(features.pooled(), means, atol=1e-5, rtol=0)
    student = d2v.load(run.folder, which="student").encoder(items)
    assert (student.x - features.x).abs().max() > 1e-2


def test_pooled_features_are_those_of_the_probe(trained: Runs, tmp_path: Path) -> None:
    run = trained("small_vision2")
    items = written("vision", tmp_path / "files")
    transform = run.transform([f"data.root={tmp_path / 'files'}"], tmp_path)
    batch = probe.Batch(torch.stack(list(transform.plain())), torch.arange(2))
    expected, _ = probe.features(run.encoder("teacher"), [batch])
    pooled = d2v.load(run.folder).encoder(items).pooled()
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=0)


def test_waveforms_in_all_their_forms(trained: Runs, tmp_path: Path) -> None:
    model, wave = d2v.load(trained("audio1").folder), waves()[0]
    soundfile.write(tmp_path / "wave.wav", wave, 16000, subtype="FLOAT")
    expected = model.encoder(wave).x
    whole = (np.round(wave * 32768).clip(-32768, 32767)).astype(np.int16)
    for same in (torch.from_numpy(wave), wave.tolist(), wave[None], tmp_path / "wave.wav"):
        torch.testing.assert_close(model.encoder(same).x, expected)
    rounded = model.encoder(whole.astype(np.float32) / 32768).x
    torch.testing.assert_close(model.encoder(whole).x, rounded)
    fast = np.repeat(wave, 2)
    soundfile.write(tmp_path / "fast.wav", fast, 32000, subtype="FLOAT")
    resampled = model.encoder(fast, sampling_rate=32000).x
    torch.testing.assert_close(resampled, model.encoder(str(tmp_path / "fast.wav")).x)
    assert resampled.shape == expected.shape
    assert model.encoder(wave, layers=1).x.shape == expected.shape


def test_images_in_all_their_forms(trained: Runs, tmp_path: Path) -> None:
    model, picture = d2v.load(trained("vision1").folder), pictures()[0]
    Image.fromarray(picture).save(tmp_path / "picture.png")
    expected = model.encoder(picture).x
    tensor = torch.from_numpy(picture).permute(2, 0, 1)
    for same in (Image.fromarray(picture), tensor, tensor[None], tmp_path / "picture.png"):
        torch.testing.assert_close(model.encoder(same).x, expected)
    grey = picture[:, :, 0]
    torch.testing.assert_close(model.encoder(grey).x, model.encoder(np.stack([grey] * 3, 2)).x)


@pytest.mark.parametrize(
    ("name", "inputs", "sentence"),
    [
        ("audio1", [], "must be at least one item"),
        ("audio1", np.zeros((2, 3, 4)), "of shape (3, 4) must be one channel of samples"),
        ("audio1", np.full(8000, np.nan), "must be finite"),
        ("audio1", "no/such.wav", "inputs=no/such.wav cannot be decoded"),
        ("vision1", np.zeros((40, 40, 3)), "of type float64 must be 8-bit images"),
        ("vision1", np.zeros((40, 40, 4), np.uint8), "must have three channels"),
    ],
)
def test_wrong_inputs(name: str, inputs: Any, sentence: str, trained: Runs) -> None:
    with pytest.raises(ConfigError) as error:
        d2v.load(trained(name).folder).encoder(inputs)
    assert sentence in str(error.value)


def test_wrong_paths(trained: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "named").symlink_to(trained("audio1").folder)
    assert d2v.load("named").network.depth == 2
    with pytest.raises(ConfigError, match="run=nmed is no folder in runs/; the nearest are named"):
        d2v.load("nmed")
    (tmp_path / "file").write_text("text")
    with pytest.raises(ConfigError, match="is not one of our checkpoints"):
        d2v.load("file")
    folder = export(trained("audio1"), "teacher", "bundle", str(tmp_path / "bundle"))
    settings = json.loads((folder / PREPARATION).read_text())
    (folder / PREPARATION).write_text(json.dumps(settings | {"_target_": "os.system"}))
    with pytest.raises(ConfigError, match=r"os\.system is not a transform"):
        d2v.load(folder).encoder(waves())
    (folder / PREPARATION).unlink()
    with pytest.raises(ConfigError, match="export the run again"):
        d2v.load(folder).encoder(waves())


def test_two_runs_in_one_process_and_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = {"documents": 40, "train": 60, "test": 40}
    first = d2v.pretrain("text", steps=2, name="first", **TINY, **_data(data))
    assert first.folder == tmp_path / "runs" / "first" and first.probe is not None
    assert {"floor", "random", "pretrained"} == first.probe["few_shot"].keys()
    assert first.encoder(SENTENCES).x.shape[2] == 32
    settings = TINY | _data(data) | {"checkpoint": {"keep_last": 1}}
    second = d2v.pretrain("text", steps=1, name="second", probe=None, **settings)
    assert second.probe is None and second.encoder("a").lengths.tolist() != [0]
    longer = d2v.pretrain("text", steps=2, name="second", probe=None, **settings)
    assert sorted(p.name for p in (longer.folder / "checkpoints").iterdir())[-1] == "step=2.ckpt"
    with pytest.raises(ConfigError, match="seed=1 differs from 0"):
        d2v.pretrain("text", steps=2, name="second", probe=None, seed=1, **settings)


def _data(values: dict[str, int]) -> dict[str, int]:
    return {f"data.{key}": value for key, value in values.items()}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"modality": "audio", "stps": 5}, "stps=5 is not a setting (did you mean steps?)"),
        ({"modality": "audio", "batch_size": 8}, "batch_size=8 is not a setting here; type global"),
        ({"modality": "audio", "data": "librispech"}, "(did you mean librispeech?)"),
        ({"modality": "audio", "steps": "many"}, "steps=many must be a positive whole number"),
        ({}, "modality=??? has no value"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        d2v.pretrain(**arguments)
    assert sentence in str(error.value) and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "value", ["it's", "a,b", "x=y {1} [2]", "back\\slash", "end\\", "\\'", "7", "1e-3", ""]
)
def test_strings_reach_the_configuration_as_they_are(value: str) -> None:
    cfg = compose.load(["modality=audio", f"name={_spelled(value)}"])
    assert cfg.name == value


def test_arguments_are_the_words_of_the_command_line(tmp_path: Path) -> None:
    settings = {"checkpoint": {"keep_last": 2}, "probe": None, "profile": True, "steps": 3}
    words = _words("audio", "librispeech", settings | {"trainer": "cpu"})
    assert words == [
        *("modality=audio", "data=librispeech", "checkpoint.keep_last=2", "probe=null"),
        *("profile=true", "steps=3", "trainer=cpu"),
    ]
    folder = ["data=folder", f"data.root='{tmp_path}'"]
    assert _words("audio", tmp_path, {}) == ["modality=audio", *folder, "trainer.devices=1"]


def test_names_are_listed_without_importing_torch() -> None:
    program = (
        "import sys, d2v_pretrain as d; names = dir(d); assert 'torch' not in sys.modules;"
        "print(*[n for n in names if n[0] != '_'])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    names = done.stdout.split()
    assert {"pretrain", "load", "Data2VecAudioModel", "Data2VecTextForMaskedLM"} <= {*names}
    assert all(getattr(d2v, name) is not None for name in names if name[0].isupper())
    assert (ROOT / "d2v_pretrain" / "py.typed").exists()
