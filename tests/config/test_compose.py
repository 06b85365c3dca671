"""Every choice of every group composes and builds (on the meta device); what cannot be is told in
one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from d2v_pretrain.config import recipes
from d2v_pretrain.config.compose import check, choices, config_folder, load
from d2v_pretrain.config.recipes import folders_of, usable_data
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.training.module import TrainingModule
from tests.config.test_recipes import CROSSED

MODALITIES, OBJECTIVES, RECIPES = choices("modality"), choices("objective"), choices("recipe")
# Millions of parameters of encoder and predictor (ALGORITHM 0.7), as the recipes build them.
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


def built(*overrides: str) -> TrainingModule:
    """The module of a configuration that passes the checks, without memory behind its weights."""
    cfg = load(overrides)
    check(cfg)
    with torch.device("meta"):
        return instantiate(cfg.module, _convert_="all")


def rooted(recipe: str) -> list[str]:
    """``data.root=`` where a recipe reads files."""
    return [] if recipe.endswith("_tiny") else ["data.root=."]


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_build(recipe: str) -> None:
    module = built(f"recipe={recipe}", *rooted(recipe))
    parts = (module.objective.student, module.objective.predictor)
    size = sum(p.numel() for part in parts for p in part.parameters())
    if recipe in PUBLISHED:
        assert size / 1e6 == pytest.approx(PUBLISHED[recipe], abs=0.1)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_its_words_and_says_what_it_is(recipe: str) -> None:
    """``modality= objective= encoder=`` and ``experiment=`` compose the same run as ``recipe=``."""
    modality, objective, size, *more = recipe.split("_")
    whole = load([f"recipe={recipe}"])
    assert (whole.name, whole["modality"], whole.recipe) == (recipe, modality, recipe)
    assert load([f"experiment={recipe}"]) == whole
    if not more:
        words = [f"modality={modality}", f"objective={objective}", f"encoder={size}"]
        assert load(words) == whole
    text = (config_folder() / "recipe" / f"{recipe}.yaml").read_text()
    if size != "tiny":
        headings = ("# Source:", "# Hardware:", "# Hours:", "# Expected:", "# Data:")
        assert all(f"\n{heading} " in text for heading in headings)
    else:
        assert "Not published." in " ".join(line.strip("# ") for line in text.splitlines())


def test_sizes_without_a_recipe_are_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"encoder=huge has no recipe .*audio_data2vec2_large"):
        load(["modality=audio", "encoder=huge"])
    with pytest.raises(ConfigError, match=r"encoder=bse is not there \(did you mean base\?\)"):
        load(["modality=audio", "encoder=bse"])
    with pytest.raises(ConfigError, match=r"modality=\?\?\? has no value; choose one of audio"):
        load(["steps=3"])


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize(
    "architecture, objective", [("data2vec1", "data2vec2"), ("data2vec2", "data2vec1")]
)
def test_either_objective_over_either_encoder(
    modality: str, architecture: str, objective: str
) -> None:
    words = (f"modality={modality}", f"objective={objective}")
    built(*words, f"architecture={modality}_{architecture}")


MASKINGS = {  # which masks which run can use
    "modality=audio": {"block", "inverse_block", "span", "token"},
    "modality=audio objective=data2vec1": {"block", "inverse_block", "span", "token"},
    "modality=vision": {"block", "inverse_block", "span", "token"},
    "modality=vision objective=data2vec1": {"block", "inverse_block", "span", "token", "rectangle"},
}


@pytest.mark.parametrize("run, masking", [(r, m) for r in MASKINGS for m in sorted(MASKINGS[r])])
def test_maskings(run: str, masking: str) -> None:
    length = ["masking.length=3"] if "block" in masking or masking == "span" else []
    built(*run.split(), f"masking={masking}", *length)


@pytest.mark.parametrize("group", ["schedule", "ema", "optimizer"])
def test_schedules_and_optimizers(group: str) -> None:
    for choice in choices(group):
        module = built("modality=audio", f"{group}={choice}")
        for schedule in (module.lr_schedule, module.objective.teacher.decay):
            assert all(0 <= schedule(step) <= 1 for step in (0, 10, 1200))


@pytest.mark.parametrize(
    "group", ["trainer", "logger", "callbacks", "probe", "debug", "hydra/launcher"]
)
def test_the_rest_composes(group: str) -> None:
    available = [c for c in choices(group) if c not in ("gpu", "slurm")]
    assert available or group == "hydra/launcher"
    for choice in [*available, "null"] if group in ("probe", "debug", "logger") else available:
        check(load(["modality=audio", f"{group}={choice}"]))


@pytest.mark.parametrize("modality", MODALITIES)
def test_data(modality: str) -> None:
    usable = usable_data(modality, folders_of(()))
    assert {"sample", "folder", "shards"} <= set(usable), "what every modality has"
    for data in usable:
        root = [] if data == "sample" else ["data.root=."]
        check(load([f"modality={modality}", f"data={data}", *root]))


def test_every_choice_is_covered() -> None:
    """A group that is added must be added to the tests here, or reach them by itself."""
    groups = {path.name for path in config_folder().iterdir() if path.is_dir()} - {"local"}
    crossed = {*CROSSED, "recipe"}
    elsewhere = {"task", "hydra"}  # tests/training/test_finetune.py, tests/slurm
    assert groups == crossed | elsewhere
    pairs = {f"{m}_{o}" for m in MODALITIES for o in OBJECTIVES}
    assert {f"{pair}_tiny" for pair in pairs} <= set(RECIPES)
    assert pairs <= set(choices("architecture"))


WRONG = {
    "encoder.heads=5": "encoder.heads=5 must divide encoder.width=128",
    "objective.targets.top_k=5": "between 1 and encoder.depth=4",
    "masking.length=1000": "masking.length=1000 must be less than the 73 tokens",
    "masking.prob=1.5": "between 0 and 1",
    "masking=span masking.equal=false": "different number of tokens in each row",
    "masking=rectangle objective=data2vec1": "masking=rectangle needs transform.size",
    "modality=vision masking=rectangle masking.count=38": "different number of tokens in each row",
    "modality=vision objective=data2vec1 masking.count=64": "64 patches",
    "modality=vision transform.size=30": "multiple of architecture.stem.patch=4",
    "global_batch=12": "type global_batch=16",
    "trainer.devices=3": "a multiple of micro_batch x devices = 8 x 3; type global_batch=24",
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
    "folder=s3://bucket/run": "is an address, and this can only be a folder of this machine",
    "data=folder": "data.root=??? has no value; type data.root=",
    "experiment=text_data2vec2_base data.root=.": "is not for modality=audio",
    "experiment=audio_data2vec2_base objective=data2vec1": "is not for objective=data2vec1",
    "architecture.stem.masked=false objective=data2vec1": "must be true",
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
    assert load(["modality=audio"]).folder == "runs/audio_data2vec2_tiny"
    assert load(
        ["modality=audio", "objective=data2vec2", "architecture=audio_data2vec1"]
    ).name.endswith("_audio_data2vec1")
    assert load(["modality=audio", "name=mine"]).folder == "runs/mine"


def test_a_shorter_run_keeps_its_proportions() -> None:
    long, short = load(["modality=audio", "steps=1000"]), load(["modality=audio", "steps=100"])
    assert short.warmup * 10 == long.warmup
    assert short.ema.steps * 10 == long.ema.steps


def test_conf_is_found_in_a_clone_and_in_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (config_folder() / "pretrain.yaml").is_file()
    package = tmp_path / "d2v_pretrain"
    monkeypatch.setattr(recipes, "__file__", str(package / "config" / "compose.py"))
    with pytest.raises(ConfigError, match="install d2v_pretrain again"):
        config_folder()
    (package / "conf").mkdir(parents=True)
    (package / "conf" / "pretrain.yaml").touch()
    assert config_folder() == package / "conf"


@pytest.mark.parametrize("modality", ["audio", "vision", "text"])
def test_a_single_step_is_a_run(modality: str) -> None:
    check(load([f"modality={modality}", "steps=1"]))
