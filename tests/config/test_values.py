"""Values that no setting may have: one sentence, from the checks alone."""

from __future__ import annotations

from functools import cache
from typing import get_args

import pytest
from omegaconf import DictConfig, OmegaConf

from d2v_pretrain.config.compose import check, load
from d2v_pretrain.config.rules import OLD_PRECISIONS, TRAINER_WORDS
from d2v_pretrain.errors import ConfigError

WRONG = [
    ("modality=audio", "workers=many", "workers=many must be a whole number from 0"),
    ("modality=audio", "seed=99999999999999999999", "must be a whole number from 0 to 2^63 - 1"),
    ("modality=audio", "steps=9999999999999999999999", "must be below 2^63"),
    ("modality=audio", "warmup=-1", "warmup=-1 must be a whole number from 0"),
    ("modality=audio", "lr=inf", "lr=inf must be a finite number"),
    ("modality=audio", "weight_decay=-1", "weight_decay=-1 must be at least 0"),
    ("modality=audio", "max_hours=nan", "max_hours=nan must be a finite number"),
    ("modality=audio", "checkpoint.every_minutes=nan", "must be a finite number"),
    ("modality=audio", "checkpoint.asynchronous=maybe", "must be true or false"),
    ("modality=audio", "profile=maybe", "profile=maybe must be true or false"),
    ("modality=audio", "transform.crop_seconds=nan", "must be a finite number"),
    (
        "modality=audio",
        "transform.crop_seconds=0",
        "transform.crop_seconds=0 must be a positive number",
    ),
    ("modality=vision", "transform.flip=2", "transform.flip=2 must lie between 0 and 1"),
    ("modality=vision", "transform.size=0", "transform.size=0 must be a positive whole number"),
    ("modality=text", "transform.vocab_size=-3", "must be a positive whole number"),
    ("modality=audio", "objective.clones=0", "objective.clones=0 must be a positive whole number"),
    ("modality=audio", "encoder.heads=0", "encoder.heads=0 must be a positive whole number"),
    ("modality=audio", "trainer.precision=bf16-mixd", "did you mean bf16-mixed"),
    ("modality=audio", "trainer.accelerator=gpuu", "(did you mean gpu?)"),
    ("modality=audio", "trainer.strategy=deepspeed", "trainer.strategy=deepspeed is not there"),
    ("modality=audio", "trainer.devices=0", "trainer.devices=0 must be a positive whole number"),
    (
        "modality=audio",
        "trainer.num_nodes=0",
        "trainer.num_nodes=0 must be a positive whole number",
    ),
    ("modality=audio", "name=null", "name=None must be usable as the name of a folder"),
    ("modality=audio", "folder=", "folder= must not be empty; type folder=DIR"),
    ("modality=audio", "data=folder data.root=", "data.root= must not be empty"),
    ("modality=audio", "init_from=/dev/null", "init_from=/dev/null cannot be read as a checkpoint"),
    ("modality=audio", "init_from=/", "is no folder with a model"),
]


@cache
def composed(modality: str) -> DictConfig:
    return load([modality, "data=folder", "data.root=."])


@pytest.mark.parametrize(("modality", "word", "sentence"), WRONG)
def test_a_wrong_value(modality: str, word: str, sentence: str) -> None:
    cfg = composed(modality).copy()
    key, _, text = word.split()[-1].partition("=")
    value = {"nan": float("nan"), "inf": float("inf"), "": "", "null": None}.get(text)
    if text not in ("nan", "inf", "", "null"):
        value = OmegaConf.create(f"value: {text}").value
    OmegaConf.update(cfg, key, value)
    with pytest.raises(ConfigError) as found:
        check(cfg)
    assert sentence in str(found.value)


def test_values_that_are_right() -> None:
    for word in ("workers=3", "seed=0", "warmup=0", "weight_decay=0", "trainer.precision=16"):
        cfg = composed("modality=audio").copy()
        OmegaConf.update(cfg, *word.split("=")[:1], int(word.split("=")[1]))
        check(cfg)


def test_the_words_of_the_trainer_are_lightnings() -> None:
    from lightning.fabric.connector import _PRECISION_INPUT

    theirs = {str(word) for part in get_args(_PRECISION_INPUT) for word in get_args(part)}
    known = {*TRAINER_WORDS["precision"], *OLD_PRECISIONS}
    assert known == {word for word in theirs if not word.startswith("transformer-engine")}
