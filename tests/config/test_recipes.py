"""What is typed is what runs: each choice of each group over each recipe, against conf/."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from d2v_pretrain.config import show
from d2v_pretrain.config.compose import check, choices, config_folder, load
from d2v_pretrain.config.explain import in_words
from d2v_pretrain.config.recipes import for_hydra
from d2v_pretrain.errors import ConfigError

CROSSED = ["modality", "objective", "encoder", "architecture", "data", "masking", "schedule"]
CROSSED += ["ema", "optimizer", "trainer", "logger", "callbacks", "probe", "debug"]
PAIRS = [(r, g, c) for r in choices("recipe") for g in CROSSED for c in choices(g)]
SAMPLE = set(random.Random(0).sample(PAIRS, 110))


@pytest.mark.parametrize(
    "recipe, group, choice",
    [
        pytest.param(*p, marks=[] if p in SAMPLE else [pytest.mark.slow], id="-".join(p))
        for p in PAIRS
    ],
)
def test_a_typed_group_is_what_runs_or_is_refused(recipe: str, group: str, choice: str) -> None:
    """Never a third thing: the group's own file, whole, in a run that can be built; or a sentence
    that names what was typed."""
    words = [f"recipe={recipe}", f"{group}={choice}"]
    usual = plain(recipe)
    sample = choice.endswith("_sample") or (group != "data" and recipe.endswith("_tiny"))
    words += [] if sample else ["data.root=."]
    try:
        cfg = load(words)
        check(cfg)
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        told = in_words(error)
        assert isinstance(told, ConfigError) and "\n" not in str(told)
        assert group in str(told) or choice in str(told), told
        return
    if group not in ("modality", "objective", "encoder", "debug"):
        assert_whole(cfg, usual, group, choice)
    with torch.device("meta"):
        instantiate(cfg.module, _convert_="all")


@cache
def plain(recipe: str) -> DictConfig:
    return load([f"recipe={recipe}"])


def assert_whole(cfg: DictConfig, usual: DictConfig, group: str, choice: str) -> None:
    """The node holds the keys of the group's file and their values; what the file leaves open is
    the recipe's."""
    file = OmegaConf.load(config_folder() / group / f"{choice}.yaml")
    node = cfg[group] if cfg[group] is not None else OmegaConf.create()
    assert isinstance(file, DictConfig) and set(node) == set(file)
    raw: Any = OmegaConf.to_container(file)
    for key, value in raw.items():
        if value == "???":
            expected = "." if key == "root" else OmegaConf.select(usual, f"{group}.{key}")
        elif "${" in str(value) or "???" in str(value):
            continue
        else:
            expected = OmegaConf.create({"it": value}).it
        assert node[key] == expected, key


def test_the_cases_that_were_silent() -> None:
    """Each composed something else than what was typed, or died on keys that nobody typed."""
    rooted = ["recipe=vision_data2vec2_base", "data.root=."]
    assert load([*rooted, "masking=block"]).masking.inverse is False
    audio = ["experiment=audio_data2vec2_base", "data.root=."]
    assert load([*audio, "masking=inverse_block"]).masking.inverse is True
    assert set(load([*audio, "masking=token"]).masking) == {"_target_", "prob"}
    for word in ("schedule=linear", "schedule=constant", "optimizer=adamw", "ema=cosine"):
        check(load([*audio, word]))
    typed = load([*audio, "architecture=audio_data2vec1", "architecture.block.dropout=0.3"])
    assert typed.architecture.block.dropout == 0.3 and typed.architecture.bias is None


@pytest.mark.parametrize("recipe", ["audio_data2vec2_base", "vision_data2vec1_base"])
def test_ones_own_files_in_a_published_recipe(recipe: str) -> None:
    for data in ("folder", "shards"):
        cfg = load([f"recipe={recipe}", f"data={data}", "data.root=DIR"])
        assert cfg.data.root == "DIR" and cfg.transform.dataset.root == "DIR"


def test_a_value_of_the_replaced_group_is_refused() -> None:
    words = ["recipe=audio_data2vec1_base", "data.root=.", "masking=block"]
    with pytest.raises(ConfigError, match=r"masking.equal=True is not a setting of masking=block"):
        load([*words, "masking.equal=true"])
    assert load([*words, "+masking.new=1"]).masking.new == 1
    assert "adjust" not in load([*words, "~masking.adjust"]).masking


def test_sweeps_become_lists_of_recipes() -> None:
    words = for_hydra(["modality=audio,text", "objective=data2vec1,data2vec2", "seed=1,2"])
    recipes = "audio_data2vec1_tiny,audio_data2vec2_tiny,text_data2vec1_tiny,text_data2vec2_tiny"
    assert words == [f"recipe={recipes}", "seed=1,2"]
    assert for_hydra(["modality=audio", "data=folder,fsdd"])[1] == "data=audio_folder,fsdd"
    assert "data=${modality}_folder" in for_hydra(["modality=audio,text", "data=folder"])


def test_cfg_job_is_resolved_and_says_where_values_come_from() -> None:
    typed = ["modality=audio", "masking=token", "lr=1e-4", "data=folder", "name=mine"]
    text = show.job(typed)
    assert "${" not in text
    notes, cfg = text.split("recipe: ", 1)
    assert notes.splitlines() == [
        "# modality=audio: conf/recipe/audio_data2vec2_tiny.yaml",
        "# masking=token: conf/masking/token.yaml, in place of masking=block of the recipe",
        "# lr=1e-4: typed; it was 0.001",
        "# data=folder: conf/data/audio_folder.yaml, in place of data=audio_sample of the recipe",
        "# name=mine: typed; it was audio_data2vec2_tiny",
    ]
    shown = OmegaConf.create("recipe: " + cfg)
    assert shown.masking.prob == 0.48 and shown.lr == 1e-4 and shown.folder == "runs/mine"
    again = "\nmasking:\n", "  inverse: ", "top_k: 3", "size: 32"  # what scripts look for
    assert all(
        part in show.job(["modality=vision"]) + show.job(["modality=audio"]) for part in again
    )


def test_folders_of_ones_own_come_after_conf(tmp_path: Path) -> None:
    (tmp_path / "masking").mkdir()
    (tmp_path / "masking" / "mine.yaml").write_text(
        "_target_: d2v_pretrain.masking.TokenMask\nprob: 0.3\n"
    )
    cfg = load(["modality=audio", f"conf={tmp_path}", "masking=mine"])
    assert dict(cfg.masking) == {"_target_": "d2v_pretrain.masking.TokenMask", "prob": 0.3}
    assert cfg.conf == [str(tmp_path)]
    with pytest.raises(ConfigError, match="conf=nowhere is not a folder"):
        load(["modality=audio", "conf=nowhere"])
