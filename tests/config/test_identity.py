"""identity.py: what makes another run; naming.py: automatic names, and those of a sweep."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from d2v_pretrain.config.compose import load
from d2v_pretrain.config.identity import (
    Change,
    changes,
    check_same_run,
    equals_at_once,
    following_steps,
)
from d2v_pretrain.config.naming import for_sweep
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.schedules import Linear, WarmupCosine


def composed(*words: str) -> DictConfig:
    return load(["modality=audio", "name=x", "trainer=cpu", *words])


def stored(*words: str) -> dict[str, Any]:
    """As a checkpoint holds it: YAML of the resolved configuration, read again."""
    text = OmegaConf.to_yaml(composed(*words), resolve=True)
    return OmegaConf.to_container(OmegaConf.create(text))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def started() -> dict[str, Any]:
    return stored()


# What is typed -> the keys that must be refused; several words in one composition, to be quick.
OTHER_RUNS = (
    {
        "lr=5e-4": {"lr"},
        "warmup=7": {"warmup"},
        "schedule.final=1e-5": {"schedule.final"},
        "weight_decay=.05": {"weight_decay"},
        "clip=null": {"clip"},
        "ema.end=.9999": {"ema.end"},
        "optimizer.betas=[.8,.95]": {"optimizer.betas"},
        "optimizer.eps=1e-8": {"optimizer.eps"},
        "module.optimizer._target_=torch.optim.Adam": {"module.optimizer._target_"},
        "architecture.block.dropout=.1": {"architecture.block.dropout"},
        "architecture.layer_drop=.1": {"architecture.layer_drop"},
        "+architecture.drop_path=.1": {"architecture.drop_path"},
        "objective.predictor.input_dropout=.1": {"objective.predictor.input_dropout"},
        "objective.clones=2": {"objective.clones"},
        "seed=1": {"seed"},
        "global_batch=16": {"global_batch"},
        "transform.crop_seconds=2.0": {"transform.crop_seconds"},
        "data.sequences=40": {"data.sequences"},
        "+datamodule.buckets=4": {"datamodule.buckets"},
        "+trainer.gradient_clip_val=1.0": {"trainer.gradient_clip_val"},
    },
    {
        "schedule=linear": {"schedule._target_"},
        "ema=cosine": {"ema._target_"},
        "optimizer=adam_fairseq": {"optimizer.eps_inside", "optimizer.weight_decay_on"},
        "encoder.depth=5": {"encoder.depth"},
    },
    {"schedule.peak=2e-4": {"schedule.peak"}},
)
SAME_RUNS = {
    "trainer=ddp trainer.accelerator=cpu trainer.devices=2 trainer.precision=bf16-mixed": {
        *("trainer.devices", "trainer.precision", "trainer.strategy", "trainer.strategy._target_"),
        *("trainer.strategy.timeout._target_", "trainer.strategy.timeout.count"),
        "trainer.strategy.broadcast_buffers",
    },
    "workers=2 log_every=1 logger=tensorboard checkpoint.every_steps=5 max_hours=1 profile=true "
    "probe=null architecture.checkpointing=true callbacks.bad_steps.patience=3": {
        *("workers", "log_every", "checkpoint.every_steps", "max_hours", "profile"),
        *("logger._target_", "logger._partial_", "logger.save_dir", "logger.version"),
        *("probe._target_", "probe._partial_", "probe.every", "callbacks.bad_steps.patience"),
        "architecture.checkpointing",
    },
    "steps=2000 folder=elsewhere name=other resume=with_changes": {"steps"},
}


@pytest.mark.parametrize("words", OTHER_RUNS)
def test_what_makes_another_run_is_named_and_refused(
    started: dict[str, Any], words: dict[str, set[str]]
) -> None:
    """Only the cause is named, not what follows it: lr, and not schedule.peak."""
    found = changes(started, composed(*words))
    assert {change.key for change in found} == set().union(*words.values())
    assert not any(change.is_free for change in found)
    for change in found:
        with pytest.raises(ConfigError, match=r"differs .*name=… for a new run") as refused:
            check_same_run([change], "x", deliberate=False)
        assert refused.value.key == change.key


@pytest.mark.parametrize("words", SAME_RUNS)
def test_hardware_and_conveniences_may_change(started: dict[str, Any], words: str) -> None:
    found = changes(started, composed(*words.split()))
    check_same_run(found, "x", deliberate=False)
    assert all(change.is_free for change in found)
    assert {change.key for change in found} == SAME_RUNS[words]


def test_all_that_differs_is_in_one_message(started: dict[str, Any]) -> None:
    words = ["lr=5e-4", "warmup=9", "clip=null", "optimizer.betas=[.8,.9]", "schedule=linear"]
    with pytest.raises(ConfigError) as refused:
        check_same_run(changes(started, composed(*words)), "x", deliberate=False)
    for key in ("lr=0.0005 (it was 0.001)", "warmup=9", "clip=None", "betas", "Linear"):
        assert key in str(refused.value)
    assert "resume=with_changes" in str(refused.value)


def test_what_no_longer_follows_is_not_hidden() -> None:
    """schedule.peak was typed, and now follows lr again: lr is equal, the peak is not."""
    found = changes(stored("schedule.peak=2e-4", "seed=1"), composed())
    assert found == [Change("seed", 1, 0), Change("schedule.peak", 2e-4, 1e-3)]


def test_deliberate_changes_and_those_that_are_impossible(started: dict[str, Any]) -> None:
    possible = composed("lr=5e-4", "optimizer.betas=[.8,.9]", "architecture.block.dropout=.1")
    check_same_run(changes(started, possible), "x", deliberate=True)
    for word in ("seed=1", "global_batch=16", "data.sequences=40", "transform.crop_seconds=1"):
        found = changes(started, composed("lr=5e-4", word))
        with pytest.raises(ConfigError, match="cannot change within a run") as refused:
            check_same_run(found, "x", deliberate=True)
        assert refused.value.key == word.partition("=")[0] and "lr" not in str(refused.value)


def test_what_more_steps_mean_for_what_follows_them() -> None:
    cfg = composed("steps=400")
    assert following_steps(cfg, 200) == [
        Change("warmup", 10, 20),
        Change("ema.steps", 140, 280),
        Change("schedule.steps", 200, 400),
        Change("schedule.warmup", 10, 20),
    ]
    assert following_steps(composed("steps=400", "schedule=constant", "ema.steps=9"), 200) == [
        Change("warmup", 10, 20)
    ]


@pytest.mark.parametrize(
    ("words", "step", "equal"),
    [
        ("schedule=constant ema.steps=9", 200, True),
        ("schedule=constant", 200, False),
        ("schedule=constant", 0, True),
        ("schedule=constant ema.start=.999", 200, True),  # a line from .999 to .999
        ("ema.steps=9", 200, False),
        ("ema.steps=9 warmup=30", 30, True),  # the warm-up alone does not depend on steps
        ("ema.steps=9 warmup=30", 31, False),
    ],
)
def test_equal_at_once_where_the_schedules_were(words: str, step: int, equal: bool) -> None:
    assert equals_at_once(composed("steps=400", *words.split()), 200, step) is equal


def test_equal_at_once_against_the_schedules_themselves() -> None:
    """Of schedules written out by hand: the first step at which they part is found."""
    cfg = composed("steps=400", "warmup=5")
    ema = [Linear(0.99, 0.999, int(0.7 * steps)) for steps in (200, 400)]
    lr = [WarmupCosine(1e-3, 5, steps) for steps in (200, 400)]
    parts = min(next(k for k in range(400) if a(k) != b(k)) for a, b in (ema, lr))
    assert equals_at_once(cfg, 200, parts - 1) and not equals_at_once(cfg, 200, parts)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("", "audio_data2vec2_tiny"),
        ("lr=5e-4", "audio_data2vec2_tiny_lr0.0005"),
        ("lr=0.0005", "audio_data2vec2_tiny_lr0.0005"),
        ("lr=1e-3 seed=0", "audio_data2vec2_tiny"),  # the recipe's own values
        ("seed=1 clip=null", "audio_data2vec2_tiny_clip-null_seed1"),
        ("clip=null seed=1", "audio_data2vec2_tiny_clip-null_seed1"),
        ("data.words=9 seed=1", "audio_data2vec2_tiny_seed1_data.words9"),
        ("masking=span masking.prob=.6", "audio_data2vec2_tiny_span_masking.prob0.6"),
        ("masking=span masking.prob=.65", "audio_data2vec2_tiny_span"),
        ("steps=7 trainer=cpu workers=1 probe=null log_every=1", "audio_data2vec2_tiny"),
        ("debug=quick", "audio_data2vec2_tiny_quick"),
        ("data=folder data.root=/a/b", "audio_data2vec2_tiny_folder"),
    ],
)
def test_automatic_names(words: str, name: str) -> None:
    assert load(["modality=audio", *words.split()]).name == name


def test_long_names_are_cut_and_stay_different() -> None:
    words = [f"objective.predictor.{key}=16" for key in ("dim", "layers", "kernel", "groups")]
    words += ["encoder.conv=[[16,10,10],[16,8,8],[16,4,4]]", "architecture.layer_drop=0.3"]
    names = [load(["modality=audio", *words, f"lr={lr}"]).name for lr in ("1e-4", "2e-4")]
    assert names[0] != names[1] and all(len(name) <= 100 for name in names)


def names_of_sweep(*words: str) -> list[str]:
    """The folders of all runs of a sweep, as Hydra's sweeper splits it."""
    swept = for_sweep([f"recipe={words[0]}", *words[1:]])
    runs: list[list[str]] = [[]]
    for word in OverridesParser.create().parse_overrides(swept):
        values = word.sweep_string_iterator() if word.is_sweep_override() else [None]
        lines = [f"{word.key_or_group}={v}" if v else str(word.input_line) for v in values]
        runs = [[*run, line] for run in runs for line in lines]
    return [load(run).folder for run in runs]


@pytest.mark.parametrize(
    ("words", "endings"),
    [
        ("lr=1e-4,5e-4", ["_lr0.0001", "_lr0.0005"]),
        ("steps=10,20", ["_steps10", "_steps20"]),  # free, and still told apart in a sweep
        ("trainer=cpu,auto", ["_cpu", "_auto"]),
        ("masking=block,span", ["_block", "_span"]),
        ("name=mine seed=0,1", ["/mine_seed0", "/mine_seed1"]),
        ("name=mine_${seed} seed=0,1", ["/mine_0", "/mine_1"]),
        ("name=mine_${seed} seed=0 lr=1e-4,2e-4", ["/mine_0_lr0.0001", "/mine_0_lr0.0002"]),
        ("folder=out/x seed=0,1", ["out/x_seed0", "out/x_seed1"]),
        ("folder=out/${name} seed=0,1", ["_seed0", "_seed1"]),
    ],
)
def test_each_run_of_a_sweep_has_a_folder_of_its_own(words: str, endings: list[str]) -> None:
    folders = names_of_sweep("audio_data2vec2_tiny", *words.split())
    assert len({*folders}) == len(folders)
    assert all(folder.endswith(end) for folder, end in zip(folders, endings))


def test_a_run_of_a_sweep_goes_on_alone() -> None:
    """The same settings typed without the sweep give the name that the sweep gave."""
    [_, second] = names_of_sweep("audio_data2vec2_tiny", "lr=1e-4,5e-4", "clip=null")
    assert load(["modality=audio", "lr=5e-4", "clip=null"]).folder == second
