"""What people type: one-line errors with exit code 2, a run's folder, going on, the tree as a wheel
installs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from d2v_pretrain import cli
from d2v_pretrain.config import compose

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
    "modality=audio encoder=big": "choose one of base, huge, large, small, tiny",
    "modality=audio objective=data2vec3": "did you mean data2vec",
    "modality=audio experiment=audio_data2vec2_bas": "did you mean audio_data2vec2_base",
    "modality=audio experiment=vision_data2vec2_base": (
        "is not for modality=audio: it is for modality=vision; leave out modality="
    ),
    "modality=vision data=librispeech data.root=.": "choose one of cifar10, cifar100, folder,",
    "modality=audio stps=5": (
        "stps=5 is not a setting (did you mean steps?); the settings are in conf/pretrain.yaml"
    ),
    "modality=audio encodr=tiny": "did you mean encoder",
    "modality=audio objective.clone=4": "did you mean objective.clones",
    "modality=audio mask.prob=.5": "did you mean masking.prob",
    "modality=audio trainer.device=2": (
        "(did you mean trainer.devices?); the settings are in conf/trainer/"
    ),
    "modality=audio steps": "is not of the form key=value",
    "modality=audio a=[1": "is not of the form key=value",
    "modality=audio steps=${nothing}": "cannot be worked out",
    "--modality audio": "--modality=audio is typed without dashes; type modality=audio",
    "--modality=audio": "--modality=audio is typed without dashes; type modality=audio",
    "modality=audio --data.root DIR": "type data.root=DIR",
    "modality=audio --max-hours=2": "type max_hours=2",
    "modality=audio batch_size=8": "type global_batch=N (samples per update) or micro_batch=N",
    "modality=audio learning_rate=.1": "learning_rate=.1 is not a setting here; type lr=X",
    "modality=audio max_epochs=3": "type steps=N",
    "modality=audio devices=4": "type trainer.devices=N",
    "modality=audio output_dir=out": "type folder=DIR, or name=RUN",
    "modality=audio resume_from=x": "a run goes on by the same command",
    "modality=audio steps=many": "steps=many must be a positive whole number",
    "modality=audio data=folder": "data.root=??? has no value",
    "modality=audio data.root=DIR": (
        "data.root=DIR is not a setting of the embedded data; type data=folder too"
    ),
    "modality=audio data.sequences=40 data.words=10 folder=/dev/null/run": (
        "cannot be written (Not a directory)"
    ),
    "modality=audio data=folder data.root=no/such": "data.root=no/such is not a folder",
    "modality=audio workers=-1": "workers=-1 must be a whole number from 0",
    "modality=audio seed=-1": "seed=-1 must be a whole number from 0",
    "modality=audio lr=nan": "lr=nan must be a finite number",
    "modality=audio trainer.precision=fp16": "trainer.precision=fp16 is not there",
    "modality=audio trainer.devices=-1": "trainer=ddp takes all GPUs",
    "modality=audio name=..": "name=.. must be usable as the name of a folder",
    "modality=audio init_from=runs/a/checkpoints/step=20.ckpt": "step=20.ckpt is not a file or",
    "modality=audio init_from=some-org/some.name": (
        "and no model of this name is in the local hub cache; give the path of a checkpoint, or "
        "type hf download some-org/some.name first"
    ),
    "modality=audio logger=wandb": "nobody is logged in here; type wandb login once",
}


def type_in(monkeypatch: pytest.MonkeyPatch, folder: Path, arguments: list[str]) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    cli.train(arguments)


# What people and scripts type, frozen: the commands, and the options and settings on their pages.
SURFACE = {
    "pretrain": [
        *("modality", "objective", "encoder", "recipe", "data", "data.root", "masking"),
        *("name", "folder", "seed", "steps", "lr", "warmup", "global_batch", "micro_batch"),
        *("max_tokens", "workers", "trainer", "logger", "probe", "resume", "init_from"),
        *("max_hours", "checkpoint.every_steps", "checkpoint.every_minutes"),
        *("checkpoint.keep_last", "log_every", "profile"),
    ],
    "finetune": [
        *("modality", "encoder", "recipe", "data", "data.root", "labels", "name", "folder", "seed"),
        *(
            "steps",
            "lr",
            "warmup",
            "global_batch",
            "micro_batch",
            "max_tokens",
            "workers",
            "trainer",
        ),
        *("logger", "resume", "init_from", "max_hours", "checkpoint.every_steps"),
        *("checkpoint.every_minutes", "checkpoint.keep_last", "log_every", "profile"),
    ],
    "evaluate": ["run", "data", "which", "trust", "step", "layers"],
    "extract": ["run", "output", "data", "pool", "layers", "which", "trust", "step"],
    "export": ["run", "which", "format", "trust", "step", "output"],
    "doctor": ["sample"],
    "prepare audio": [
        *("input", "output", "processes", "order", "seed", "shard_mb", "shard_samples"),
        *("max_bad_share", "licence", "encode", "min_seconds", "max_seconds", "check"),
    ],
    "prepare vision": [
        *("input", "output", "processes", "order", "seed", "shard_mb", "shard_samples"),
        *("max_bad_share", "licence", "short_side", "quality", "min_side", "check"),
    ],
    "prepare text": [
        *("input", "output", "processes", "order", "seed", "shard_mb", "shard_samples"),
        *("max_bad_share", "licence", "tokenizer", "vocab_size", "train_mb", "block"),
        *("break_mode", "blank_lines", "part_mb"),
    ],
    "prepare index": ["input", "processes"],
    "prepare verify": ["input", "processes"],
}


def console(folder: Path, *words: str, code: int = 0) -> str:
    """``d2v-pretrain …`` in a process of its own; all that it prints."""
    program = "from d2v_pretrain.cli import main; main()"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("command", SURFACE)
def test_the_surface_is_frozen_and_on_the_pages(command: str, tmp_path: Path) -> None:
    page = console(tmp_path, *command.split(), "-h")
    assert re.findall(r"^  ([a-z_.]+)=", page, re.M) == SURFACE[command]
    assert f"Usage: d2v-pretrain {command} " in page
    if command not in ("prepare index", "prepare verify"):
        assert page.partition("Examples:")[2].count(f"\n  d2v-pretrain {command} ") == 3
    assert max(map(len, page.splitlines())) <= 100
    assert not any(tmp_path.iterdir())


def test_the_commands_are_frozen(tmp_path: Path) -> None:
    page = console(tmp_path, "-h")
    assert page == console(tmp_path), "without a word too"
    names = ["pretrain", "finetune", "evaluate", "extract", "export", "doctor", "prepare"]
    assert list(cli.COMMANDS) == names and all(f"\n  {name} " in page for name in names)
    assert "did you mean export?" in console(tmp_path, "exprt", "run=x", code=2)


def test_train_and_pretrain_have_one_page(tmp_path: Path) -> None:
    assert start(tmp_path, "--help") == console(tmp_path, "pretrain", "-h")


def test_a_page_does_not_wait_for_torch(tmp_path: Path) -> None:
    program = "import sys; from d2v_pretrain.cli import main; main(); print('torch' in sys.modules)"
    command = [sys.executable, "-c", program, "pretrain", "-h"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


@pytest.mark.parametrize("modality", ["audio", "text", "vision"])
@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_every_setting_on_the_pages_exists(command: str, modality: str) -> None:
    cfg = compose.load([f"modality={modality}", "data=folder", f"task={command}"])
    groups = {path.name for path in compose.config_folder().iterdir() if path.is_dir()}
    for key in SURFACE[command]:
        parent, _, last = key.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        assert key in groups or last in node.keys(), key  # noqa: SIM118, `in` skips ???


def test_the_console_commands_do_what_the_modules_do(tmp_path: Path) -> None:
    for words in (["modality=audio"], ["pretrain", "modality=audio"]):
        assert "steps: " in (printed := console(tmp_path, *words, "--cfg", "job"))
        assert "Finetuning" not in printed and "FinetuneModule" not in printed
    assert console(tmp_path, "finetune", "modality=audio", "--cfg", "job") != printed
    sentence = "error: run=none is no folder in runs/"
    for command in ("evaluate", "export"):
        assert sentence in console(tmp_path, command, "run=none", code=2)
    assert "input=no is not a folder" in console(
        tmp_path, "prepare", "audio", "input=no", "output=out", code=2
    )
    assert "data.root=no is not a folder" in console(
        tmp_path, "doctor", "modality=audio", "data=folder", "data.root=no", code=2
    )


@pytest.mark.parametrize("typed, sentence", list(WRONG.items()))
def test_a_mistake_is_one_sentence(
    typed: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # where a login would be
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
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
    assert "name: audio_data2vec2_tiny\n" in capfd.readouterr().out
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
