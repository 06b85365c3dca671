"""Exports of runs against what transformers makes of them, in this process and in one without
d2v_pretrain."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import d2v_pretrain
from d2v_pretrain import export
from d2v_pretrain.checkpoint import saved_run as trained_module
from d2v_pretrain.checkpoint.saved_run import PARTS, Run
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface.export_inputs import INPUTS
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.training.init_from import load_weights, read
from d2v_pretrain.types import Batch
from d2v_pretrain.weights import bundle
from datamodules.transforms.vision import _standardised

transformers = pytest.importorskip("transformers")
Runs = Callable[[str], Run]
CLASSES = {
    "audio1": "Data2VecAudioModel",
    "text1": "Data2VecTextModel",
    "text2": "Data2VecTextModel",
    "vision1": "Data2VecVisionModel",
}
OLD = os.environ.get("TRANSFORMERS4_PYTHON")
NO_OLD = pytest.mark.skipif(
    not OLD, reason="TRANSFORMERS4_PYTHON names no Python with transformers 4.37"
)
OWN_CODE = ["audio2", "vision2", "small_text2", "small_vision2"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def example(run: Run, encoder: Encoder) -> tuple[Batch, dict[str, torch.Tensor]]:
    """A padded batch, and the same for transformers."""
    torch.manual_seed(5)
    inputs = INPUTS[type(encoder.stem)]
    batch = inputs.example(run)
    feed = {inputs.name: batch.inputs}
    if batch.lengths is not None:
        feed["attention_mask"] = (
            torch.arange(batch.inputs.shape[1]) < batch.lengths[:, None]
        ).long()
    return batch, feed


@torch.no_grad()
def row_by_row(model: torch.nn.Module, feed: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
    """What a class of transformers computes of each row without its padding, at the real tokens of
    all rows, one after the other. Its audio class lets padding leak into the last frames."""
    states = []
    for i in range(len(batch)):
        size = feed[next(iter(feed))].shape[-1] if batch.lengths is None else int(batch.lengths[i])
        row = {name: value[i : i + 1, ..., :size] for name, value in feed.items()}
        states.append(model(**row).last_hidden_state[0])
    return torch.cat(states)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("which", ["teacher", "student"])
def test_a_class_of_transformers_computes_the_same(
    name: str, which: str, trained: Runs, tmp_path: Path
) -> None:
    run = trained(name)
    folder = export.export(run, which, "hf", str(tmp_path / "out"))
    model, report = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == CLASSES[name]
    assert (
        all(key.startswith("pooler.") for key in report["missing_keys"])
        and not report["unexpected_keys"]
    )
    encoder = run.encoder(which)
    batch, feed = example(run, encoder)
    with torch.no_grad():
        ours, theirs = encoder.encode(batch), row_by_row(model, feed, batch)
    real = torch.ones(ours.x.shape[:2]).bool() if ours.valid is None else ours.valid
    torch.testing.assert_close(theirs, ours.x[real], atol=1e-5, rtol=0)
    other = run.encoder(next(part for part in PARTS if part != which))
    with torch.no_grad():
        assert (other.encode(batch).x[real] - theirs).abs().max() > 1e-2, (
            "student and teacher differ"
        )


PROGRAM = """
import sys, torch
sys.modules["d2v_pretrain"] = None  # importing it now fails
from safetensors.torch import load_file, save_file
from transformers import AutoModel
for folder in sys.argv[1:]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        output = model(**load_file(folder + "/in"), output_hidden_states=True)
    model.save_pretrained(folder + "_again")
    again = AutoModel.from_pretrained(folder + "_again", trust_remote_code=True)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    last = output.hidden_states[-1].clone()
    save_file({"x": output.last_hidden_state, "last": last}, folder + "/out")
"""


@pytest.mark.parametrize(
    "python, names",
    [
        pytest.param(sys.executable, OWN_CODE, id="transformers 5"),
        pytest.param(
            OLD, [*CLASSES, *OWN_CODE], id="transformers 4", marks=[pytest.mark.slow, NO_OLD]
        ),
    ],
)
def test_folders_with_their_own_code_need_transformers_alone(
    python: str, names: list[str], trained: Runs, tmp_path: Path
) -> None:
    folders = {
        name: export.export(trained(name), "teacher", "hf", str(tmp_path / name)) for name in names
    }
    for name, folder in folders.items():
        save_file(example(trained(name), trained(name).encoder("teacher"))[1], folder / "in")
    command = [python, "-c", PROGRAM, *map(str, folders.values())]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name, folder in folders.items():
        encoder = trained(name).encoder("teacher")
        batch, _ = example(trained(name), encoder)
        assert ("standardised by itself" in (folder / "README.md").read_text()) == (
            name == "small_vision2"
        )
        if json.loads((folder / "config.json").read_text()).get("standardise"):
            batch = Batch(torch.stack([_standardised(image) for image in batch.inputs]), batch.ids)
        with torch.no_grad():
            ours, theirs = encoder.encode(batch), load_file(folder / "out")
        real = slice(None) if ours.valid is None else ours.valid
        torch.testing.assert_close(theirs["x"][real], ours.x[real], atol=1e-5, rtol=0)
        torch.testing.assert_close(
            encoder.final_norm(theirs["last"]), theirs["x"], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("name", [*CLASSES, *OWN_CODE])
def test_a_bundle_comes_back_and_starts_a_run(name: str, trained: Runs, tmp_path: Path) -> None:
    run = trained(name)
    folder = export.export(run, "teacher", "bundle", str(tmp_path / "out"))
    encoder, loaded, fresh = (
        run.encoder("teacher"),
        d2v_pretrain.load(folder).network,
        run.encoder("student"),
    )
    load_weights([fresh], read(folder))
    batch, _ = example(run, encoder)
    with torch.no_grad():
        expected = encoder.encode(batch).x
        assert torch.equal(loaded.encode(batch).x, expected) and torch.equal(
            fresh.encode(batch).x, expected
        )
    assert not loaded.training
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1, (
        "who may read the card may read the weights"
    )


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_of_transformers_starts_a_run(name: str, trained: Runs, tmp_path: Path) -> None:
    """Also saved again by transformers itself, with a head around it, and for text with a segment
    vector."""
    run = trained(name)
    folder = export.export(run, "teacher", "hf", str(tmp_path / "out"))
    model = transformers.AutoModel.from_pretrained(folder)
    if hasattr(model, "embeddings") and hasattr(model.embeddings, "token_type_embeddings"):
        torch.nn.init.normal_(model.embeddings.token_type_embeddings.weight)
    model.save_pretrained(tmp_path / "theirs")
    student = run.encoder("student")
    line = load_weights([student], read(tmp_path / "theirs"))
    assert "transformers data2vec-" in line
    batch, feed = example(run, student)
    with torch.no_grad():
        ours, theirs = student.encode(batch), row_by_row(model, feed, batch)
    real = torch.ones(ours.x.shape[:2]).bool() if ours.valid is None else ours.valid
    torch.testing.assert_close(ours.x[real], theirs, atol=1e-5, rtol=0)


def test_a_head_of_transformers_is_left_out_and_told(trained: Runs, tmp_path: Path) -> None:
    folder = export.export(trained("audio1"), "teacher", "hf", str(tmp_path / "out"))
    transformers.Data2VecAudioForCTC.from_pretrained(folder).save_pretrained(tmp_path / "ctc")
    student = trained("audio1").encoder("student")
    assert "left out lm_head.bias, lm_head.weight" in load_weights(
        [student], read(tmp_path / "ctc")
    )
    wanted = trained("audio1").encoder("teacher").state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in student.state_dict().items())


def test_the_wrong_folder_for_an_encoder(trained: Runs, tmp_path: Path) -> None:
    folder = export.export(trained("audio1"), "teacher", "hf", str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"does not fit the encoder: missing in it: bias\.scale"):
        load_weights([trained("audio2").encoder("student")], read(folder))
    with pytest.raises(ConfigError, match="holds a model of type data2vec-audio, not a bundle"):
        bundle.load(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="holds a model of type bert"):
        read(folder)


@pytest.mark.parametrize(
    "target", ["os.system", "builtins.eval", "d2v_pretrain.models.attention.torch"]
)
def test_a_bundle_builds_our_modules_only(target: str, trained: Runs, tmp_path: Path) -> None:
    folder = export.export(trained("audio1"), "teacher", "bundle", str(tmp_path / "out"))
    content = json.loads((folder / "config.json").read_text())
    content["architecture"]["stem"] = {"_target_": target, "command": "true"}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="describes no encoder that can be built"):
        d2v_pretrain.load(folder)


def test_a_damaged_bundle(trained: Runs, tmp_path: Path) -> None:
    folder = export.export(trained("vision1"), "teacher", "bundle", str(tmp_path / "out"))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="cannot be read"):
        d2v_pretrain.load(folder)


@pytest.mark.parametrize(
    "typed, sentence",
    [
        ([], "run= must be given: a run's name"),
        (["run=auido1"], "run=auido1 is no folder in runs/; the nearest are audio1"),
        (["run=empty"], "has no checkpoint yet"),
        (["run=torn"], "has no whole one: last.ckpt is corrupt"),
        (["run=audio1", "format=onnx"], "format=onnx must be one of hf, bundle"),
        (["run=audio1", "which=ema"], "which=ema must be one of teacher, student"),
        (["run=audio1", "step=3"], "step=3 has no checkpoint in runs/audio1; there are 7"),
        (["run=audio1", "step=last"], "step=last must be a whole number"),
        (["run=audio1", "fromat=hf"], "fromat=hf is not an option (did you mean format?)"),
        (["audio1"], "is not of the form key=value; type run=audio1"),
        (["run=audio1", "output=full"], "output=full is not empty"),
    ],
)
def test_wrong_words(
    typed: list[str], sentence: str, trained: Runs, tmp_path: Path, monkeypatch
) -> None:
    run = trained("audio1")
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "audio1").symlink_to(run.folder)
    (runs / "empty").mkdir()
    torn = runs / "torn" / "checkpoints"
    torn.mkdir(parents=True)
    content = bytearray(run.file.read_bytes())
    content[len(content) // 2] ^= 1
    (torn / "last.ckpt").write_bytes(content)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        export.main(typed)
    assert sentence in str(error.value)


def test_the_card_and_the_words(
    trained: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("audio2")
    task = {"task": "words", "classes": 10, "floor_name": "log-mel", "headline": "few_shot"}
    scores = {
        m: {"floor": 0.1, "random": 0.2, "pretrained": 0.3456}
        for m in ("few_shot", "linear", "knn")
    }
    probe = task | scores | {"step": 9, "data": "/secret/place/dataset: 12 files", "others": []}
    (run.folder / "probe.json").write_text(json.dumps(probe))
    folder = export.export(run, "student", "hf", str(tmp_path / "out"))
    (run.folder / "probe.json").unlink()
    card = (folder / "README.md").read_text()
    for part in (
        "library_name: transformers",
        "abc123",
        "7 of 7",
        "0.346",
        "step 9 (these weights are of step 7)",
    ):
        assert part in card, part
    assert "dataset: 12 files" in card and "secret" not in card, "no path of this machine"
    printed = capsys.readouterr().out
    assert (
        "it has an attention bias, ALiBi" in printed
        and "format=bundle" in printed
        and "trust_remote_code" in printed
    )


def test_a_run_that_was_moved_and_an_older_step(trained: Runs, tmp_path: Path) -> None:
    run = trained("text1")
    moved = tmp_path / "elsewhere"
    (moved / "checkpoints").mkdir(parents=True)
    (moved / "checkpoints" / "step=7.ckpt").write_bytes(run.file.read_bytes())
    assert trained_module.find(str(moved), 7).cfg.transform.cache == f"{moved}/tokenizer.json"
