"""Rules between settings: numbers, sizes, masks, devices. A broken rule is reported with the key,
its value and a remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.utils import get_object, instantiate

from d2v_pretrain.config.recipes import folders_of, usable_data
from d2v_pretrain.errors import ConfigError

_WHOLE = ("steps", "global_batch", "micro_batch", "log_every", "checkpoint.keep_last")
_WHOLE_OR_NULL = ("checkpoint.keep_every", "max_tokens", "window_shards", "checkpoint.every_steps")
_POSITIVE = ("lr", "ema.steps")
_POSITIVE_OR_NULL = ("clip", "max_hours", "checkpoint.every_minutes")
_NUMBERS = ("warmup", "weight_decay", "ema.start", "ema.end", "ema.steps")


def at(cfg: Any, key: str) -> Any:
    """The value at a dotted key of nested mappings, None if there is none."""
    for part in key.split("."):
        cfg = None if cfg is None else cfg.get(part)
    return cfg


def check_numbers(cfg: Any) -> None:
    """Check that counts and sizes are positive numbers, and that the warm-up fits into the run."""
    for keys, nullable in (
        (_WHOLE, False),
        (_WHOLE_OR_NULL, True),
        (_POSITIVE, False),
        (_POSITIVE_OR_NULL, True),
    ):
        for key in keys:
            whole = keys in (_WHOLE, _WHOLE_OR_NULL)
            _check_positive(key, at(cfg, key), whole, nullable)
    for key in _NUMBERS:
        if isinstance(at(cfg, key), bool) or not isinstance(at(cfg, key), int | float):
            raise ConfigError(key, at(cfg, key), "must be a number")
    if not isinstance(cfg.seed, int):
        raise ConfigError("seed", cfg.seed, "must be a whole number")
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


def check_going_on(cfg: Any) -> None:
    """Check ``resume``, the name of the run, and what it starts from."""
    if cfg.resume not in ("auto", "never", "with_changes"):
        raise ConfigError("resume", cfg.resume, "must be auto or never, or with_changes")
    if not str(cfg.name) or set(str(cfg.name)) & set('/\\:*?"<>| '):
        raise ConfigError(
            "name",
            cfg.name,
            "must be usable as the name of a folder",
            "leave out spaces and slashes",
        )
    if cfg.init_from is not None and not Path(cfg.init_from).exists():
        raise ConfigError(
            "init_from", cfg.init_from, "is not a file or folder", "give the path of a checkpoint"
        )


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


RULES: tuple[Callable[[Any], None], ...] = (
    check_going_on,
    check_sizes,
    check_groups,
    check_devices,
)
METHOD_RULES = (check_targets, check_parts)  # of pretraining
