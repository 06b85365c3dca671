"""Every choice of every group composes and builds (on the meta device); what cannot be is told in
one sentence."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from d2v_pretrain.config import compose as config
from d2v_pretrain.config import identity as provenance
from d2v_pretrain.config import rules
from d2v_pretrain.config.compose import check, choices, config_folder, load
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.training.module import Pretrain

MODALITIES, OBJECTIVES = choices("modality"), choices("objective")
# Millions of parameters of encoder and predictor (ALGORITHM 0.7), as the experiments build them.
# Audio v1 counts its head; the reference counts 0.15 M fixed image positions that are no parameters
# here (0.25 and 0.33 M for huge).
PUBLISHED = {
    "audio_data2vec1_base": 93.75,
    "audio_data2vec2_base": 93.16 + 0.62,
    "audio_data2vec2_large": 313.3 + 1.9,
    "text_data2vec1_base": 124.05 + 2.36,
    "text_data2vec2_base": 124.05 + 28.9,
    "text_data2vec2_large": 354.3 + 31.1,
    "vision_data2vec1_base": 86.3,
    "vision_data2vec1_large": 304.2,
    "vision_data2vec2_base": 85.8 - 0.15 + 2.6,
    "vision_data2vec2_large": 303.3 - 0.2 + 6.0,
    "vision_data2vec2_huge": 630.9 - 0.25 + 6.6,
    "vision_data2vec2_huge14": 630.8 - 0.33 + 6.6,
}


def built(*overrides: str) -> Pretrain:
    """The module of a configuration that passes the checks, without memory behind its weights."""
    cfg = load(overrides)
    check(cfg)
    with torch.device("meta"):
        return instantiate(cfg.module, _convert_="all")


@pytest.mark.parametrize("modality, objective", list(itertools.product(MODALITIES, OBJECTIVES)))
@pytest.mark.parametrize("encoder", ["tiny", "huge"])
def test_every_modality_objective_and_size(modality: str, objective: str, encoder: str) -> None:
    module = built(f"modality={modality}", f"objective={objective}", f"encoder={encoder}")
    assert (
        module.objective.student.depth
        == load([f"modality={modality}", f"encoder={encoder}"]).encoder.depth
    )


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize(
    "architecture, objective", [("data2vec1", "data2vec2"), ("data2vec2", "data2vec1")]
)
def test_either_objective_over_either_encoder(
    modality: str, architecture: str, objective: str
) -> None:
    built(
        f"modality={modality}", f"objective={objective}", f"architecture={modality}_{architecture}"
    )


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_experiments(experiment: str) -> None:
    module = built(f"experiment={experiment}", "data.root=.")
    size = sum(
        p.numel()
        for part in (module.objective.student, module.objective.predictor)
        for p in part.parameters()
    )
    if experiment in PUBLISHED:
        assert size / 1e6 == pytest.approx(PUBLISHED[experiment], abs=0.1)
    assert load([f"experiment={experiment}"]).name == experiment


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_experiments_leave_nothing_to_the_small_recipe(experiment: str) -> None:
    """The small recipe is switched off, and the architecture is the published one."""
    published = (config_folder() / "experiment" / f"{experiment}.yaml").read_text()
    modality, objective = experiment.split("_")[:2]
    assert "- override /recipe: null\n" in published
    assert f"- override /architecture: {modality}_{objective}\n" in published


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_experiments_say_what_they_are(experiment: str) -> None:
    text = (config_folder() / "experiment" / f"{experiment}.yaml").read_text()
    assert all(word in text for word in ("Source:", "Hardware:", "Expected:", "Data:"))


MASKINGS = {  # which masks which run can use
    "modality=audio": {"block", "inverse_block", "span", "token"},
    "modality=audio objective=data2vec1": {"block", "inverse_block", "span", "token"},
    "modality=vision": {"block", "inverse_block", "span", "token"},
    "modality=vision objective=data2vec1": {
        "block",
        "inverse_block",
        "span",
        "token",
        "rectangle masking.count=38",
    },
}


@pytest.mark.parametrize(
    "run, masking", [(run, m) for run, names in MASKINGS.items() for m in sorted(names)]
)
def test_maskings(run: str, masking: str) -> None:
    length = ["masking.length=3"] if "block" in masking or masking == "span" else []
    built(*run.split(), *f"masking={masking}".split(), *length)


@pytest.mark.parametrize("group", ["schedule", "decay", "optimizer"])
def test_schedules_and_optimizers(group: str) -> None:
    for choice in choices(group):
        module = built("modality=audio", f"{group}={choice}")
        for schedule in (module.rate, module.objective.teacher.decay):
            assert all(0 <= schedule(step) <= 1 for step in (0, 10, 1200))


@pytest.mark.parametrize(
    "group", ["trainer", "logger", "callbacks", "probe", "debug", "hydra/launcher"]
)
def test_the_rest_composes(group: str) -> None:
    available = [c for c in choices(group) if c not in ("gpu", "slurm")]
    assert available or group == "hydra/launcher"
    for choice in [*available, "null"] if group in ("probe", "debug", "logger") else available:
        check(load(["modality=audio", f"{group}={choice}"]))


@pytest.mark.parametrize("dataset", choices("dataset"))
def test_data(dataset: str) -> None:
    modality, _, data = dataset.partition("_")
    root = [] if data == "sample" else ["data.root=."]
    check(load([f"modality={modality}", f"data={data}", *root]))


def test_every_choice_is_covered() -> None:
    """A group or choice that is added must be added to the tests above, or reach them by itself."""
    groups = {path.name for path in config_folder().iterdir() if path.is_dir()} - {"local"}
    tested = {
        "modality",
        "objective",
        "architecture",
        "encoder",
        "experiment",
        "masking",
        "schedule",
        "decay",
        "optimizer",
    }
    tested |= {"task"}  # tests/training/test_finetune.py
    assert groups == tested | {
        "trainer",
        "logger",
        "callbacks",
        "probe",
        "debug",
        "hydra",
        "data",
        "dataset",
        "recipe",
    }
    pairs = {f"{m}_{o}" for m in MODALITIES for o in OBJECTIVES}
    assert pairs == set(choices("recipe"))
    assert pairs | {f"small_{pair}" for pair in pairs} == set(choices("architecture"))
    assert {dataset.partition("_")[2] for dataset in choices("dataset")} == set(choices("data"))
    general = {f"{m}_{d}" for m in MODALITIES for d in ("sample", "folder", "shards")}
    assert general <= set(choices("dataset")), "what every modality has"


WRONG = {
    "encoder.heads=5": "encoder.heads=5 must divide encoder.width=128",
    "objective.targets.top_k=5": "between 1 and encoder.depth=4",
    "masking.length=1000": "masking.length=1000 must be less than the 73 tokens",
    "masking.prob=1.5": "between 0 and 1",
    "masking=span masking.equal=false": "different number of tokens in each row",
    "masking=rectangle objective=data2vec1": "needs images",
    "modality=vision masking=rectangle masking.count=38": "different number of tokens in each row",
    "modality=vision objective=data2vec1 masking.count=64": "64 patches",
    "modality=vision transform.size=30": "multiple of architecture.stem.patch=4",
    "global_batch=12": "type global_batch=16",
    "trainer.devices=3": "must be a multiple of micro_batch x devices = 8 x 3; type global_batch=24",
    "warmup=1200": "less than steps=1200",
    "ema.start=0.9999": "ema.start=0.9999 must lie between 0 and ema.end",
    "steps=many": "steps=many must be a positive whole number",
    "steps=0": "positive",
    "ema.end=late": "ema.end=late must be a number",
    "max_hours=-1": "max_hours=-1 must be a positive number or null",
    "objective.clones=two": "objective.clones=two must be int",
    "objective.cls_weight=0.1": "CLS",
    "architecture.positions.groups=7": "must divide architecture.positions.width=128",
    "objective.predictor.groups=12": "must divide objective.predictor.width=128",
    "objective.predictor.dims=2": "must be 1",
    "+objective.foo=1": "objective.foo=1 is not an argument of Data2Vec; it takes student",
    "~objective.predictor.kernel": "objective.predictor.kernel",
    "resume=maybe": "auto or never",
    "name=a/b": "name of a folder",
    "init_from=nowhere.ckpt": "is not a file",
    "data=folder": "data.root=??? has no value; type data.root=",
    "experiment=text_data2vec2_base data.root=.": "is not for modality=audio",
    "experiment=audio_data2vec2_base objective=data2vec1 data.root=.": "is not for objective=data2vec1",
    "mask_vector=false objective=data2vec1": "must be true",
}


@pytest.mark.parametrize("overrides, sentence", list(WRONG.items()))
def test_impossible_combinations(overrides: str, sentence: str) -> None:
    typed = overrides.split()
    modality = [] if any(o.startswith("modality") for o in typed) else ["modality=audio"]
    with pytest.raises(ConfigError) as error:
        check(load([*modality, *typed]))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_trainer_gpu_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="type trainer=cpu"):
        check(load(["modality=audio", "trainer=gpu"]))


def test_defaults_follow_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load(["modality=audio"]).trainer.precision == "32-true"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert load(["modality=audio"]).trainer.precision == "bf16-mixed"


def test_names_of_runs() -> None:
    assert load(["modality=audio"]).folder == "runs/audio_data2vec2_tiny_sample"
    assert load(
        ["modality=audio", "objective=data2vec2", "architecture=audio_data2vec1"]
    ).name.endswith("_audio_data2vec1")
    assert load(["modality=audio", "name=mine"]).folder == "runs/mine"


@pytest.mark.parametrize("modality", MODALITIES)
def test_token_grid_is_the_stem_s(modality: str) -> None:
    """The host arithmetic of the rules against the stem itself."""
    cfg = load([f"modality={modality}"])
    sides = {
        "audio": lambda: (1, round(cfg.transform.crop_seconds * 16_000)),
        "text": lambda: (1, cfg.transform.block),
    }
    shape = (
        sides[modality]() if modality in sides else (1, 3, cfg.transform.size, cfg.transform.size)
    )
    stem = built(f"modality={modality}").objective.student.stem
    assert rules.token_grid(cfg) == stem.grid(torch.Size(shape))


def test_a_shorter_run_keeps_its_proportions() -> None:
    long, short = load(["modality=audio", "steps=1000"]), load(["modality=audio", "steps=100"])
    assert short.warmup * 10 == long.warmup
    assert short.ema.steps * 10 == long.ema.steps


def test_the_same_run_may_change_its_place_but_not_its_data_order() -> None:
    def plain(*overrides: str) -> dict:
        return OmegaConf.to_container(load(["modality=audio", *overrides]), resolve=True)  # type: ignore[return-value]

    started = plain()
    provenance.check_same_run(
        started, plain("steps=2000", "log_every=1", "trainer=cpu", "max_hours=1")
    )
    for change in (
        "seed=1",
        "global_batch=16",
        "objective.clones=2",
        "encoder.depth=5",
        "transform.crop_seconds=2.0",
    ):
        with pytest.raises(ConfigError, match="type name=… for a new run"):
            provenance.check_same_run(started, plain(change))


def test_conf_is_found_in_a_clone_and_in_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (config_folder() / "pretrain.yaml").is_file()
    package = tmp_path / "d2v_pretrain"
    monkeypatch.setattr(config, "__file__", str(package / "config.py"))
    with pytest.raises(ConfigError, match="install d2v_pretrain again"):
        config_folder()
    (package / "conf").mkdir(parents=True)
    (package / "conf" / "pretrain.yaml").touch()
    assert config_folder() == package / "conf"


@pytest.mark.parametrize("modality", ["audio", "vision", "text"])
def test_a_single_step_is_a_run(modality: str) -> None:
    check(load([f"modality={modality}", "steps=1"]))
