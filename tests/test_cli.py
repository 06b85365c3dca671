"""What people type: one-line errors with exit code 2, a run's folder, going on, the tree as a wheel
installs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from d2v_pretrain import cli

ROOT = Path(__file__).parent.parent
TINY = [
    *("modality=text", "steps=4", "log_every=1", "micro_batch=2", "global_batch=4", "trainer=cpu"),
    *("data.documents=40", "data.train=60", "data.test=40", "transform.vocab_size=400"),
    *(
        "encoder.width=32",
        "encoder.depth=3",
        "encoder.heads=2",
        "objective.predictor.dim=32",
        "objective.clones=2",
        "objective.targets.top_k=2",
    ),
]

WRONG = {
    "": "modality=??? has no value; choose one of audio, text, vision",
    "modality=audoi": "modality=audoi is not there (did you mean audio?)",
    "modality=audio encoder=big": "choose one of base, huge, large, tiny",
    "modality=audio objective=data2vec3": "did you mean data2vec",
    "modality=audio experiment=audio_data2vec2_bas": "did you mean audio_data2vec2_base",
    "modality=audio experiment=vision_data2vec2_base": "is not for modality=audio; leave out modality=",
    "modality=vision data=librispeech": "choose one of cifar10, cifar100, folder,",
    "modality=audio stps=5": "stps=5 is not a setting (did you mean steps?); the settings are in conf/pretrain.yaml",
    "modality=audio encodr=tiny": "did you mean encoder",
    "modality=audio objective.clone=4": "did you mean objective.clones",
    "modality=audio mask.prob=.5": "did you mean masking.prob",
    "modality=audio trainer.device=2": "(did you mean trainer.devices?); the settings are in conf/trainer/",
    "modality=audio steps": "is not of the form key=value",
    "modality=audio a=[1": "is not of the form key=value",
    "modality=audio steps=${nothing}": "cannot be worked out",
    "modality=audio steps=many": "steps=many must be a positive whole number",
    "modality=audio data=folder": "data.root=??? has no value",
    "modality=audio data.root=DIR": "data.root=DIR is not a setting of the embedded data; type data=folder too",
    "modality=audio data.sequences=40 data.words=10 folder=/dev/null/run": "cannot be written (Not a directory)",
    "modality=audio data=folder data.root=no/such": "data.root=no/such is not a folder",
}


def type_in(monkeypatch: pytest.MonkeyPatch, folder: Path, arguments: list[str]) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    cli.main()


def test_help_needs_no_other_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        type_in(monkeypatch, tmp_path, ["--help"])
    assert stop.value.code == 0 and "data: ag_news" in capfd.readouterr().out


@pytest.mark.parametrize("typed, sentence", list(WRONG.items()))
def test_a_mistake_is_one_sentence(
    typed: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        type_in(monkeypatch, tmp_path, typed.split())
    lines = capfd.readouterr().err.strip().splitlines()
    assert stop.value.code == 2
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert sentence in lines[0]
    assert not any(tmp_path.iterdir()), "nothing is left behind"


def test_the_whole_run_can_be_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, tmp_path, ["modality=audio", "--cfg", "job", "--resolve"])
    assert "name: audio_data2vec2_tiny_sample" in capfd.readouterr().out
    assert not any(tmp_path.iterdir())


def start(folder: Path, *arguments: str, code: int = 0, **environment: str) -> str:
    """``python train.py …`` in a process of its own, in ``folder``; all that it prints."""
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_run_its_folder_and_going_on(tmp_path: Path) -> None:
    printed = start(tmp_path, *TINY, "name=first")
    folder = tmp_path / "runs" / "first"
    assert "Python's language reference (real" in printed, "the data is named"
    assert "random encoder" in printed and "pretrained encoder" in printed, "the probe is printed"
    assert [
        json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    ] == [1, 2, 3, 4]
    assert {"floor", "random", "pretrained"} <= json.loads((folder / "probe.json").read_text())[
        "few_shot"
    ].keys()
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"last.ckpt", "step=4.ckpt"}
    assert (
        "steps: 4" in (folder / "config.yaml").read_text()
        and "${" not in (folder / "config.yaml").read_text()
    )
    assert json.loads((folder / "environment.json").read_text())[0]["packages"]["torch"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["runs"], "Hydra leaves nothing about"

    assert "finished" in start(tmp_path, *TINY, "name=first")
    assert "would overwrite" in start(tmp_path, *TINY, "name=first", "resume=never", code=2)
    assert "seed=1 differs from 0" in start(tmp_path, *TINY, "name=first", "seed=1", code=2)
    longer = start(tmp_path, *TINY, "name=first", "steps=5", "probe=null")
    assert "going on from" in longer and "step 5/5" in longer

    start(
        tmp_path,
        *TINY,
        "name=second",
        "probe=null",
        f"init_from={folder / 'checkpoints' / 'last.ckpt'}",
    )
    wrong = start(
        tmp_path,
        *TINY,
        "name=third",
        "init_from=runs/first/checkpoints/last.ckpt",
        "encoder.width=64",
        code=2,
    )
    assert "does not fit the encoder" in wrong and "Traceback" not in wrong


def test_the_tree_as_a_wheel_installs_it(tmp_path: Path) -> None:
    """What setuptools copies into a wheel, put on the path of an interpreter that cannot see the
    clone."""
    pytest.importorskip("setuptools")
    build = ["build", "--build-base", str(tmp_path / "base"), "--build-lib", str(tmp_path / "site")]
    egg = ["egg_info", "--egg-base", str(tmp_path)]
    program = "import setuptools; setuptools.setup()"
    subprocess.run(
        [sys.executable, "-c", program, *egg, *build], cwd=ROOT, check=True, capture_output=True
    )
    site, work = tmp_path / "site", tmp_path / "work"
    shipped = {p.relative_to(site / "d2v_pretrain" / "conf") for p in site.rglob("*.yaml")}
    assert shipped == {
        p.relative_to(ROOT / "conf") for p in ROOT.glob("conf/**/*.yaml") if "local" not in p.parts
    }

    work.mkdir()
    program = "import d2v_pretrain.cli as c; print(c.__file__); c.main()"
    command = [sys.executable, "-c", program, "experiment=audio_data2vec2_base", "--cfg", "job"]
    done = subprocess.run(
        command,
        cwd=work,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(site)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site)) and "steps: 400000" in done.stdout


@pytest.mark.slow
def test_a_sweep_and_a_profile(tmp_path: Path) -> None:
    start(
        tmp_path, *TINY, "-m", "seed=0,1", "name=s${seed}", "probe=null", "profile=true", "steps=24"
    )
    assert {"s0", "s1"} <= {p.name for p in (tmp_path / "runs").iterdir()}
    assert list((tmp_path / "runs" / "s0").glob("*profile*"))
