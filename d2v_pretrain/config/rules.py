"""Rules between settings: numbers, sizes, masks, devices. A broken rule is reported with the key,
its value and a remedy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from hydra.utils import get_object, instantiate

from d2v_pretrain.config.recipes import folders_of, usable_data
from d2v_pretrain.errors import ConfigError, nearest, refuse_address

_WHOLE: tuple[str, ...] = ("steps", "global_batch", "micro_batch", "log_every")
_WHOLE += ("checkpoint.keep_last", "trainer.num_nodes")
_WHOLE += ("encoder.width", "encoder.depth", "encoder.heads")
_WHOLE_OR_NULL = ("checkpoint.keep_every", "max_tokens", "window_shards", "checkpoint.every_steps")
_WHOLE_OR_ABSENT = ("objective.clones", "transform.size", "transform.vocab_size")
_POSITIVE = ("lr", "ema.steps")
_POSITIVE_OR_NULL = ("clip", "max_hours", "checkpoint.every_minutes")
_POSITIVE_OR_ABSENT = ("transform.crop_seconds", "layer_decay")
_NUMBERS = ("weight_decay", "ema.start", "ema.end", "ema.steps")
_FROM_ZERO = ("warmup", "workers", "seed")
_SWITCHES = ("profile", "checkpoint.asynchronous")
TRAINER_WORDS = {
    "precision": ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"),
    "accelerator": ("auto", "cpu", "gpu", "cuda", "mps"),
    "strategy": ("auto", "ddp"),
}
OLD_PRECISIONS = ("16", "32", "64", "bf16")  # other words of Lightning's for the first ones
_LARGEST = 2**63  # whole numbers must be below it: files and torch hold 64 bits


def at(cfg: Any, key: str) -> Any:
    """The value at a dotted key of nested mappings, None if there is none."""
    for part in key.split("."):
        cfg = None if cfg is None else cfg.get(part)
    return cfg


def check_numbers(cfg: Any) -> None:
    """Check that counts and sizes are positive numbers, and that the warm-up fits into the run."""
    for keys, whole, nullable in (
        (_WHOLE, True, False),
        (_WHOLE_OR_NULL, True, True),
        (_POSITIVE, False, False),
        (_POSITIVE_OR_NULL, False, True),
    ):
        for key in keys:
            _check_positive(key, at(cfg, key), whole, nullable)
    for keys, whole in ((_WHOLE_OR_ABSENT, True), (_POSITIVE_OR_ABSENT, False)):
        for key in (key for key in keys if isinstance(at(cfg, key), int | float)):
            _check_positive(key, at(cfg, key), whole, nullable=False)
    for key in _NUMBERS:
        if isinstance(at(cfg, key), bool) or not isinstance(at(cfg, key), int | float):
            raise ConfigError(key, at(cfg, key), "must be a number")
    if cfg.weight_decay < 0:
        raise ConfigError("weight_decay", cfg.weight_decay, "must be at least 0")
    for key in _FROM_ZERO:
        value = at(cfg, key)
        if type(value) is not int or not 0 <= value < _LARGEST:
            raise ConfigError(key, value, "must be a whole number from 0 to 2^63 - 1")
    if not 0 <= (at(cfg, "transform.flip") or 0) <= 1:
        raise ConfigError("transform.flip", cfg.transform.flip, "must lie between 0 and 1")
    for key in _SWITCHES:
        if not isinstance(at(cfg, key), bool):
            raise ConfigError(key, at(cfg, key), "must be true or false")
    if cfg.warmup >= cfg.steps:
        raise ConfigError("warmup", cfg.warmup, f"must be less than steps={cfg.steps}")
    if not 0 <= cfg.ema.start <= cfg.ema.end <= 1:
        rule = f"must lie between 0 and ema.end={cfg.ema.end}, which is at most 1"
        raise ConfigError("ema.start", cfg.ema.start, rule)


def _check_positive(key: str, value: Any, whole: bool, nullable: bool) -> None:
    if value is None and nullable:
        return
    number = isinstance(value, int) or (isinstance(value, float) and not whole)
    if not number or isinstance(value, bool) or value <= 0:
        rule = f"must be a positive {'whole number' if whole else 'number'}"
        raise ConfigError(key, value, rule + (" or null" if nullable else ""))
    if value >= _LARGEST:
        raise ConfigError(key, value, "must be below 2^63")


def check_finite(typed: Any, prefix: str = "") -> None:
    """Check that no value is NaN or infinite.

    Args:
        typed: nested mappings and lists, before interpolation.
        prefix: of the keys, with a dot at its end.
    """
    pairs = typed.items() if isinstance(typed, dict) else enumerate(typed)
    for key, value in pairs:
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{prefix}{key}", value, "must be a finite number")
        if isinstance(value, dict | list):
            check_finite(value, f"{prefix}{key}.")


def check_going_on(cfg: Any) -> None:
    """Check ``resume``, name and folder of the run, and what it starts from."""
    if cfg.resume not in ("auto", "never", "with_changes"):
        raise ConfigError("resume", cfg.resume, "must be auto or never, or with_changes")
    wrong = cfg.name is None or str(cfg.name) in ("", ".", "..")
    if wrong or set(str(cfg.name)) & set('/\\:*?"<>| '):
        raise ConfigError(
            "name",
            cfg.name,
            "must be usable as the name of a folder",
            "leave out spaces and slashes",
        )
    refuse_address("folder", cfg.folder)
    for key in ("folder", "data.root"):
        if at(cfg, key) == "":
            raise ConfigError(key, "", "must not be empty", f"type {key}=DIR")


def check_sizes(cfg: Any) -> None:
    """Check widths, depths and patch sizes that must divide or limit one another."""
    encoder = cfg.encoder
    if encoder.width % encoder.heads:
        raise ConfigError(
            "encoder.heads", encoder.heads, f"must divide encoder.width={encoder.width}"
        )
    if cfg.objective.cls_weight and not at(cfg, "architecture.extra_tokens"):
        raise ConfigError(
            "objective.cls_weight",
            cfg.objective.cls_weight,
            "needs an architecture with a CLS token",
        )


def check_targets(cfg: Any) -> None:
    """Check that the teacher has as many blocks as the targets average."""
    top_k, depth = cfg.objective.targets.top_k, cfg.encoder.depth
    if not 1 <= top_k <= depth:
        rule = f"must be between 1 and encoder.depth={depth}"
        raise ConfigError(
            "objective.targets.top_k", top_k, rule, "the targets average that many last blocks"
        )


def check_groups(cfg: Any) -> None:
    """Check that the groups of each convolution divide its channels."""
    for node, channels in (
        ("architecture.positions", ("width",)),
        ("objective.predictor", ("width", "dim")),
    ):
        groups = at(cfg, f"{node}.groups")
        for side in channels if groups is not None else ():
            size = at(cfg, f"{node}.{side}")
            if size % groups:
                raise ConfigError(f"{node}.groups", groups, f"must divide {node}.{side}={size}")


def check_data(cfg: Any) -> None:
    """Check that the transform of the modality takes items of the kind that the dataset holds."""
    dataset: Any = get_object(cfg.data._target_)
    transform: Any = get_object(cfg.transform._target_)
    if dataset.holds != transform.takes:
        folders = folders_of([f"conf={','.join(cfg.conf)}"])
        usable = ", ".join(usable_data(cfg["modality"], folders))
        rule = f"holds items of kind {dataset.holds}, and modality={cfg['modality']} takes "
        raise ConfigError(
            "data", dataset.__name__, rule + transform.takes, f"choose one of {usable}"
        )


def check_parts(cfg: Any) -> None:
    """Check that stem, transform, mask, view and predictor fit together, by their own ``check``."""
    import torch  # takes seconds, which a usage page need not wait for

    transform: Any = get_object(cfg.transform._target_)
    with torch.device("meta"):
        stem = instantiate(cfg.architecture.stem, _convert_="all")
    if stem.reads != transform.gives:
        rule = f"reads {stem.reads}, and transform={transform.__name__} gives {transform.gives}"
        choices = f"choose one for modality={cfg['modality']}"
        raise ConfigError("architecture.stem", type(stem).__name__, rule, choices)
    shape = transform.longest_input(**cfg.transform)
    stem.check(shape)
    grid = stem.grid(torch.Size((1, *shape)))
    mask, view = instantiate(cfg.masking, _convert_="all"), instantiate(cfg.objective.view)
    mask.check(grid, stem.reads)
    predictor: Any = get_object(cfg.objective.predictor._target_)
    view.check(mask, predictor.fills_gaps)
    dims = at(cfg, "objective.predictor.dims")
    if dims not in (None, len(grid)):
        rule = f"must be {len(grid)}, as the tokens lie"
        raise ConfigError("objective.predictor.dims", dims, rule)
    if view.replaces and at(cfg, "architecture.stem.masked") is False:
        rule = "must be true where masked tokens are replaced"
        raise ConfigError("architecture.stem.masked", False, rule, "leave it to the recipe")


def check_devices(cfg: Any) -> None:
    """Check that the devices exist, and that the global batch can be divided among them."""
    trainer = cfg.trainer
    _check_trainer_words(trainer)
    if trainer.accelerator == "gpu":
        import torch

        if not torch.cuda.is_available():
            raise ConfigError(
                "trainer", "gpu", "needs a GPU and torch sees none", "type trainer=cpu"
            )
    world = trainer.devices * trainer.num_nodes if isinstance(trainer.devices, int) else 1
    unit = cfg.micro_batch * world
    if cfg.global_batch % unit:
        rule = f"must be a multiple of micro_batch x devices = {cfg.micro_batch} x {world}"
        nearest = max(unit, round(cfg.global_batch / unit) * unit)
        raise ConfigError(
            "global_batch",
            cfg.global_batch,
            rule,
            f"type global_batch={nearest}, or another micro_batch",
        )


def _check_trainer_words(trainer: Any) -> None:
    """Check the words that Lightning would refuse only after the data were read."""
    for key, words in TRAINER_WORDS.items():
        value, known = at(trainer, key), {*words, *(OLD_PRECISIONS if key == "precision" else ())}
        if isinstance(value, str | int | float | None) and str(value) not in known:
            rule = f"is not there{nearest(str(value), words)}"
            raise ConfigError(f"trainer.{key}", value, rule, f"choose one of {', '.join(words)}")
    devices = trainer.devices
    if isinstance(devices, str | float | bool | None) or (isinstance(devices, int) and devices < 1):
        rule = "must be a positive whole number"
        raise ConfigError("trainer.devices", devices, rule, "trainer=ddp takes all GPUs")


RULES: tuple[Callable[[Any], None], ...] = (
    check_going_on,
    check_sizes,
    check_groups,
    check_devices,
)
METHOD_RULES = (check_targets, check_parts)  # of pretraining
