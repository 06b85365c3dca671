"""task=finetune: the loss by hand, rates by layer, something learned, killed and gone on, and what
is refused."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from d2v_pretrain.config.compose import check, load
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.objective.supervised import Supervised
from d2v_pretrain.training import run
from d2v_pretrain.training.callbacks.accuracy import test as accuracy
from d2v_pretrain.training.optim import parameter_groups
from d2v_pretrain.training.tasks import Finetuning
from d2v_pretrain.types import Batch
from tests.resume import processes

ROOT = Path(__file__).parents[2]
DATA = ["data.images=37", "data.train=41", "data.test=20"]
SMALL = ["encoder.width=16", "encoder.depth=2", "encoder.heads=2"]
SHORT = ["name=run", "trainer=cpu", "steps=40", "micro_batch=2", "global_batch=4", "log_every=5"]


def supervised(*overrides: str, classes: int = 3, **more: float) -> Supervised:
    return Supervised(run.build_encoder(load(["trainer=cpu", *SMALL, *overrides])), classes, **more)


def test_padding_and_unreadable_samples_change_nothing() -> None:
    """Against every row by itself, pooled and judged in plain torch."""
    model = supervised("modality=text", "objective=data2vec1").eval()
    ids, lengths, labels = (
        torch.randint(5, 200, (3, 9)),
        torch.tensor([9, 4, 6]),
        torch.tensor([2, 0, 1]),
    )
    for row, length in zip(ids, lengths):
        row[length:] = 1
    batch = Batch(ids, torch.arange(3), lengths, labels, weight=torch.tensor([1.0, 0.0, 1.0]))
    each = []
    for row, length, label in zip(ids, lengths, labels):
        x = model.student.encode(Batch(row[None, :length], torch.arange(1))).x[0]
        each.append(F.cross_entropy(model.predictor(x.mean(0)), label))
    output = model(batch)
    assert output.count == 2
    torch.testing.assert_close(output.loss_sum, each[0] + each[2])


def test_rates_fall_towards_the_stem_as_in_beit() -> None:
    """Layer ids of BEiT: 0 patches, positions and CLS; block i is i + 1; norm and head are depth +
    1."""
    model = supervised("modality=vision", "objective=data2vec1", layer_decay=0.5)
    scale = {
        id(p): g["lr_scale"]
        for g in parameter_groups([model], "matrices", model.lr_scales)
        for p in g["params"]
    }
    for name, parameter in model.named_parameters():
        if name == "student.stem.mask_vector":
            assert id(parameter) not in scale
            continue
        block = (
            int(name.split(".")[2])
            if name.startswith(("student.blocks.", "student.layer_biases."))
            else None
        )
        last = name.startswith(("predictor.", "student.final_norm.", "student.bias."))
        layer = 3 if last else 0 if block is None else block + 1
        assert scale[id(parameter)] == 0.5 ** (3 - layer), name


def test_learns_the_topic_of_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the same model before its first step; from random weights, so all is learned here."""
    monkeypatch.chdir(tmp_path)
    typed = [
        "modality=text",
        "task=finetune",
        "labels=topic",
        "trainer=cpu",
        "name=t",
        "steps=120",
        "test_every=60",
        "lr=3e-3",
        "data.documents=20",
        "data.train=400",
        "data.test=200",
        "transform.vocab_size=500",
        "log_every=60",
        "encoder.depth=2",
    ]
    trainer = run.pretrain(load(typed))
    assert trainer is not None
    cfg = OmegaConf.load("runs/t/config.yaml")
    assert isinstance(cfg, type(load(typed))) and cfg.classes == 4
    before = accuracy(trainer, run.build_module(cfg))
    report = json.loads(Path("runs/t/finetune.json").read_text())
    assert report["accuracy"] > max(before["accuracy"], report["chance"]) + 0.3
    last = json.loads(Path("runs/t/metrics.jsonl").read_text().splitlines()[-1])
    assert last["test_accuracy"] == report["accuracy"] and report["step"] == last["step"] == 120
    assert run.pretrain(load(typed)) is None  # finished


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with an encoder, and a preparation of images, that are nobody's default."""
    cwd = tmp_path_factory.mktemp("pretrained")
    processes.finish(
        cwd,
        [
            *processes.RUNS["vision"],
            *processes.COMMON,
            "steps=2",
            "ema.steps=2",
            "warmup=1",
            "transform.flip=0.25",
        ],
    )
    return cwd / "runs/run/checkpoints/last.ckpt"


def finetuning(pretrained: Path, *more: str) -> list[str]:
    typed = [
        "task=finetune",
        "modality=vision",
        f"init_from={pretrained}",
        *DATA,
        *SHORT,
        "checkpoint.every_steps=7",
    ]
    return [*typed, "layer_decay=0.7", "test_every=20", *more]


def test_killed_it_goes_on_with_the_same_bits(tmp_path: Path, pretrained: Path) -> None:
    """From a checkpoint whose encoder and source nobody types again; killed twice on the way."""
    argv, killed, whole = finetuning(pretrained), tmp_path / "killed", tmp_path / "whole"
    for goal in (12, 30):
        [process] = processes.start(killed, argv)
        assert processes.waits(lambda goal=goal: processes.trained(killed) >= goal, [process])
        processes.kill(process)
        assert process.exitcode == -9
    processes.finish(killed, argv)
    processes.finish(whole, argv)
    assert list(processes.differences(processes.outcome(killed), processes.outcome(whole))) == []
    history = processes.history(killed)
    assert history == processes.history(whole)
    complete = processes.passes(history)[0]
    assert sorted(complete) == list(range(41))
    reports = [(cwd / "runs/run/finetune.json").read_text() for cwd in (killed, whole)]
    assert reports[0] == reports[1]
    cfg = OmegaConf.load(whole / "runs/run/config.yaml")
    assert (cfg.architecture.width, cfg.transform.flip, cfg.transform.dataset.train) == (
        16,
        0.25,
        41,
    )
    start = torch.load(pretrained, weights_only=True)["state_dict"]
    end = processes.outcome(whole)["state_dict"]
    moved = [
        n
        for n in end
        if n.startswith("objective.student.blocks") and not torch.equal(end[n], start[n])
    ]
    assert moved and all(end[name].shape == start[name].shape for name in moved)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_two_ranks_do_what_one_does(tmp_path: Path, trainer: str) -> None:
    argv = ["task=finetune", "modality=vision", "objective=data2vec1", *SMALL, *DATA, *SHORT]
    processes.finish(tmp_path / "one", argv)
    processes.finish(tmp_path / "two", argv, world=2, trainer=trainer)
    ones, twos = (processes.history(tmp_path / name) for name in ("one", "two"))
    assert {k: v["ids"] for k, v in ones.items()} == {k: v["ids"] for k, v in twos.items()}
    for place, line in ones.items():
        assert twos[place]["loss"] == pytest.approx(line["loss"], rel=1e-3)
    assert json.loads((tmp_path / "two/runs/run/finetune.json").read_text())["test"] == 20


def test_what_is_typed_counts(pretrained: Path) -> None:
    cfg = load(finetuning(pretrained, "architecture.drop_path=0.2", "transform.flip=0.5"))
    Finetuning().before(cfg)
    check(cfg)
    assert (cfg.architecture.width, cfg.architecture.drop_path, cfg.transform.flip) == (
        16,
        0.2,
        0.5,
    )
    cfg = load(finetuning(pretrained, "encoder.width=48"))
    Finetuning().before(cfg)
    assert cfg.architecture.width == 48 and cfg.transform.flip == 0.25


def test_another_modality_is_refused(pretrained: Path) -> None:
    with pytest.raises(ConfigError, match="modality=vision"):
        Finetuning().before(load(["task=finetune", "modality=audio", f"init_from={pretrained}"]))


def test_data_without_labels_is_refused(tmp_path: Path) -> None:
    """cli.in_words shows the cause of Hydra's error."""
    processes.texts(tmp_path)
    more = [
        "data=folder",
        f"data.root={tmp_path / 'texts'}",
        f"folder={tmp_path}",
        "transform.vocab_size=280",
    ]
    with pytest.raises(
        InstantiationException, match=r"no labels to fine-tune on.*data\.label_column"
    ):
        run.build_data(load(["task=finetune", "modality=text", *more, "transform.block=16"]))
    with pytest.raises(InstantiationException, match="choose one of shapes"):
        run.build_data(load(["task=finetune", "modality=vision", "labels=colour", *DATA]))


@pytest.mark.parametrize("code, requeued", [(85, True), (138, True), (0, False), (2, False)])
def test_the_slurm_script_requeues_what_was_saved(
    tmp_path: Path, code: int, requeued: bool
) -> None:
    """With a stand-in for Slurm's commands; tests/slurm runs its sisters on a real one."""
    for name, end in (("srun", code), ("scontrol", 0)):
        (tmp_path / name).write_text(
            f'#!/bin/bash\necho {name} "$@" >> {tmp_path}/said\nexit {end}\n'
        )
        (tmp_path / name).chmod(0o755)
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS_PER_NODE": "2",
    }
    script = ["bash", str(ROOT / "slurm/finetune.sbatch"), "name=a", "data.root=a b"]
    assert (
        subprocess.run(script, env=env | {"SLURM_JOB_NUM_NODES": "1"}, check=False).returncode
        == code
    )
    said = (tmp_path / "said").read_text()
    devices = "trainer=ddp trainer.devices=2 trainer.num_nodes=1"
    assert f"train.py task=finetune {devices} name=a data.root=a b" in said
    assert ("scontrol requeue 7" in said) is requeued
