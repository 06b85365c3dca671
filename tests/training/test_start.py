"""A run that is started again, in this process: what is refused, told and written; that changed
values take effect; damaged, lost and unwritable files."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from d2v_pretrain.checkpoint import file as checkpoint
from d2v_pretrain.config.compose import load
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.training.run import pretrain
from d2v_pretrain.training.tasks import Pretraining
from datamodules.datasets.image_folder import ImageFolder
from tests.resume.processes import COMMON, RUNS, differences, outcome

OWN = ("steps", "log_every", "checkpoint", "warmup", "ema.steps", "micro_batch", "global_batch")
ARGV = [word for word in RUNS["vision"] + COMMON if not word.startswith(OWN)]
ARGV += ["micro_batch=4", "global_batch=4", "log_every=1", "checkpoint.every_steps=2"]
ARGV += ["schedule=constant", "ema.steps=3", "warmup=1"]
RUN = Path("runs/run")


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words: pretrain(load([*ARGV, *words]))


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RUN / name).read_text().splitlines()]


def group(step: int) -> dict[str, Any]:
    """The settings of the parameters with weight decay, in a checkpoint's optimizer state."""
    content = checkpoint.read(RUN / f"checkpoints/step={step}.ckpt")
    return next(g for g in content["optimizer_states"][0]["param_groups"] if g["decays"])


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_finished_run_is_not_finished_under_other_settings(
    train: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    train("steps=2", "lr=1e-4")
    with pytest.raises(ConfigError, match=r"lr=0.0005 differs from 0.0001.*resume=with_changes"):
        train("steps=2", "lr=5e-4")
    assert train("steps=2", "lr=1e-4", "workers=1") is None
    assert "finished" in capsys.readouterr().out


def test_twice_the_steps_are_the_run_of_twice_the_steps(
    train: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("steps=2")
    train("steps=4")
    assert "equals, bit for bit, one of 4 steps at once" in capsys.readouterr().out
    twice = outcome(tmp_path)
    shutil.move(RUN, "runs/first")
    train("steps=4")
    assert not list(differences(outcome(tmp_path), twice))


def test_a_schedule_of_shares_says_what_more_steps_mean(
    train: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    shares = ("schedule=warmup_cosine", "warmup=${share:0.5}")
    train("steps=2", *shares)
    train("steps=4", *shares)
    printed = " ".join(capsys.readouterr().out.split())
    assert "steps=4, and it was 2." in printed and "differs from one of 4 steps at once" in printed
    assert "warmup 1 -> 2" in printed and "schedule.steps 2 -> 4" in printed
    steps = [(r["kind"], r["key"], r["old"], r["new"]) for r in rows("changes.jsonl")]
    assert ("steps", "warmup", 1, 2) in steps and ("free", "steps", 2, 4) in steps


def test_deliberate_changes_are_told_written_and_take_effect(
    train: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    changed = ("steps=6", "lr=5e-4", "optimizer.betas=[.8,.9]", "weight_decay=.3")
    train("steps=2", "lr=1e-4")
    with pytest.raises(ConfigError, match=r"lr=0.0005.*optimizer.betas"):
        train(*changed)
    train(*changed, "resume=with_changes")
    printed = " ".join(capsys.readouterr().out.split())
    assert "changed from step 2 on" in printed and "lr 0.0001 -> 0.0005" in printed
    assert group(2)["betas"] != group(6)["betas"] == (0.8, 0.9)
    assert (group(6)["lr"], group(6)["weight_decay"]) == (5e-4, 0.3)
    deliberate = {r["key"]: (r["step"], r["old"], r["new"]) for r in rows("changes.jsonl")}
    assert deliberate["lr"] == (2, 1e-4, 5e-4)
    assert deliberate["optimizer.betas"] == (2, [0.9, 0.98], [0.8, 0.9])
    assert [(r["step"], r["lr"]) for r in rows("metrics.jsonl")] == [
        *((1, 1e-4), (2, 1e-4), (3, 5e-4), (4, 5e-4), (5, 5e-4), (6, 5e-4)),
    ]
    assert train(*changed) is None, "from now on these are the run's settings"
    with pytest.raises(ConfigError, match=r"lr=0.0001 differs from 0.0005"):
        train("steps=8", "lr=1e-4", *changed[2:])


def test_the_same_change_twice_is_written_once(train: Callable[..., Any]) -> None:
    """A run that was killed before it saved anything under the new settings."""
    train("steps=2", "lr=1e-4")
    words = ("steps=4", "lr=5e-4", "resume=with_changes")
    train(*words)
    for file in (RUN / "checkpoints/step=4.ckpt", RUN / "checkpoints/last.ckpt"):
        file.unlink()
    train(*words)
    assert [r["key"] for r in rows("changes.jsonl")] == ["lr", "steps"]


def test_moments_stay_with_their_parameters_under_another_grouping(
    train: Callable[..., Any],
) -> None:
    """weight_decay_on=all has one group, matrices has two, which number the moments otherwise."""
    train("steps=2", "optimizer.weight_decay_on=all")
    before = train("steps=2", "name=plain", "optimizer.weight_decay_on=all").lightning_module
    names = dict(before.objective.named_parameters())
    moments = {
        name: before.trainer.optimizers[0].state[p]["exp_avg"].clone()
        for name, p in names.items()
        if p.requires_grad
    }
    seen: dict[str, torch.Tensor] = {}

    def look(module: Any) -> None:
        state = module.trainer.optimizers[0].state
        for name, p in module.objective.named_parameters():
            if p.requires_grad:
                seen[name] = state[p]["exp_avg"].clone()

    from d2v_pretrain.training.module import TrainingModule

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingModule, "on_train_start", look)
        words = ("optimizer.weight_decay_on=matrices", "resume=with_changes")
        trainer = train("steps=3", *words)
    assert len(trainer.optimizers[0].param_groups) == 2
    assert seen.keys() == moments.keys()
    assert all(torch.equal(seen[name], moments[name]) for name in moments)


def test_changes_under_which_the_weights_do_not_fit(train: Callable[..., Any]) -> None:
    train("steps=2")
    with pytest.raises(ConfigError, match=r"encoder.depth=3 does not fit.*blocks\.2.*name="):
        train("steps=4", "encoder.depth=3", "resume=with_changes")
    with pytest.raises(ConfigError, match=r"seed=1 differs.*cannot change within a run"):
        train("steps=4", "seed=1", "resume=with_changes")


def test_no_whole_checkpoint_does_not_start_over(train: Callable[..., Any]) -> None:
    train("steps=4")
    log = (RUN / "metrics.jsonl").read_text()
    files = list((RUN / "checkpoints").iterdir())
    for file in files:
        file.write_bytes(file.read_bytes()[:-9])
    for damaged in (True, False):
        with pytest.raises(ConfigError, match=r"no whole checkpoint.*step 4.*put a copy.*name="):
            train("steps=4")
        assert (RUN / "metrics.jsonl").read_text() == log
        if damaged:
            shutil.rmtree(RUN / "checkpoints")
    with pytest.raises(ConfigError, match=r"would overwrite"):
        train("steps=4", "resume=never")


def test_a_run_killed_before_its_first_checkpoint_starts_again(train: Callable[..., Any]) -> None:
    train("steps=2")
    shutil.rmtree(RUN / "checkpoints")
    (RUN / "saved.json").unlink()  # what a kill after the second logged step leaves
    train("steps=2")
    assert [r["step"] for r in rows("metrics.jsonl")] == [1, 2]


def test_damaged_small_files_stop_nothing(
    train: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    train("steps=4")
    lines = (RUN / "metrics.jsonl").read_text().splitlines(keepends=True)
    broken = ["".join([lines[0], '{"step": 2, "lo\n', *lines[1:]]), '{"step": 1, "ids": [1, 2']
    broken += ['[{"python": "3', '{"step":', "steps: 4\nlr:", '{"step": 2, "key']
    names = ("metrics.jsonl", "bad_steps.jsonl", "environment.json", "saved.json", "config.yaml")
    for name, text in zip((*names, "changes.jsonl"), broken):
        (RUN / name).write_text(text)
    (RUN / "metrics.csv").write_text("step,lo")
    train("steps=6")
    printed = " ".join(capsys.readouterr().out.split())
    assert f"line 2 of {RUN}/metrics.jsonl is not JSON" in printed
    for name in ("bad_steps.jsonl", "changes.jsonl"):
        assert f"the last line of {RUN / name} was cut" in printed
    assert f"{RUN}/environment.json is damaged; set aside as environment.json.damaged" in printed
    assert [r["step"] for r in rows("metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert (RUN / "metrics.jsonl.damaged").read_text() == '{"step": 2, "lo\n'
    assert len((RUN / "metrics.csv").read_text().splitlines()) == 7
    assert json.loads((RUN / "environment.json").read_text())[0]["step"] == 4
    assert json.loads((RUN / "saved.json").read_text()) == {"step": 6}
    assert "steps: 6" in (RUN / "config.yaml").read_text()


def test_another_version_is_told_and_logged(train: Callable[..., Any]) -> None:
    train("steps=2")
    file = RUN / "environment.json"
    starts = json.loads(file.read_text())
    starts[0]["packages"]["torch"] = "1.0"
    file.write_text(json.dumps(starts))
    train("steps=4")
    told = {r["key"]: r for r in rows("changes.jsonl") if r["kind"] == "environment"}
    assert told["torch"]["old"] == "1.0" and told["torch"]["new"] == version("torch")


@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.csv"])
def test_a_full_disk_names_the_file_and_the_run_goes_on_after_it(
    train: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    """The limit on sizes of files stands for a full disk: writing the first line fails half-way."""
    train("steps=2")
    whole = outcome(tmp_path)
    shutil.rmtree(RUN)
    RUN.mkdir(parents=True)
    if name == "metrics.csv":
        (RUN / name).mkdir()
    with small_files(90) if name == "metrics.jsonl" else pytest.MonkeyPatch.context():
        from d2v_pretrain.training.callbacks.metrics import JsonlLogger

        with pytest.raises(OSError) as refused:
            JsonlLogger(RUN).log_metrics({"loss": 0.25, "x" * 90: 1.0}, 1)
    assert refused.value.filename == str(RUN / name)
    if name == "metrics.csv":
        (RUN / name).rmdir()
    train("steps=2")
    assert not list(differences(outcome(tmp_path), whole))


def test_a_folder_that_cannot_be_written_is_found_before_the_data(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    RUN.mkdir(parents=True)
    (RUN / "checkpoints").write_text("in the way")
    monkeypatch.setattr("d2v_pretrain.training.run.build_data", lambda cfg: pytest.fail("too late"))
    with pytest.raises(ConfigError, match=r"runs/run/checkpoints cannot be written .Not a dir"):
        train("steps=2")
    (RUN / "checkpoints").unlink()
    with small_files(1000), pytest.raises(ConfigError, match=r"runs/run cannot be written .File"):
        train("steps=2")
    assert not list(RUN.iterdir()), "nothing is left"


def test_another_folder_of_data_is_not_finished(train: Callable[..., Any]) -> None:
    """The data of a run may be moved, but other data are another run, also of a finished one."""
    for folder, texts in (("a", 40), ("b", 40), ("c", 41)):
        Path(folder).mkdir()
        for n in range(texts):
            Path(folder, f"{n}.txt").write_text(f"the cat number {n} sees a red house. " * 4)
    words = [w for w in RUNS["text"] if not w.startswith("data.root")]
    words += [*COMMON, "micro_batch=4", "global_batch=4", "steps=1", "warmup=0"]

    def run(root: str) -> Any:
        return pretrain(load([*words, f"data.root={root}"]))

    assert run("a") is not None and run("a") is None and run("b") is None
    with pytest.raises(ConfigError, match=r"position in the data does not carry over"):
        run("c")


def test_another_folder_of_as_many_images_is_other_data(tmp_path: Path) -> None:
    """A folder may move, and one without the same names is another."""

    def checksum(folder: str, names: list[str]) -> int:
        for name in names:
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new("RGB", (16, 16)).save(tmp_path / folder / name)
        return int(ImageFolder(str(tmp_path / folder), 8, 0.1, None).checksums[0])

    first = checksum("a", ["0.png", "1.png"])
    assert checksum("moved", ["0.png", "1.png"]) == first
    assert checksum("other", ["0.png", "2.png"]) != first


def test_a_report_of_an_earlier_end_does_not_finish_a_longer_run(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    """The run of 4 steps was killed between its last checkpoint and its probe."""
    cfg, task = load([*(w for w in ARGV if w != "probe=null"), "steps=4"]), Pretraining()
    reports = {None: False, '{"step": 2}': False, '{"step": 4}': True, '{"st': False, "[]": False}
    for text, finished in reports.items():
        if text is not None:
            (tmp_path / "probe.json").write_text(text)
        assert task.is_finished(cfg, tmp_path, 4) is finished
    (tmp_path / "probe.json").write_text('{"step": 3}')
    assert not task.is_finished(cfg, tmp_path, 3)
