"""Rules between settings: numbers, sizes, masks, devices. Each is told with its key, value and a
remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    """What counts or measures is a positive number; durations fit into the run."""
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
    """Name, and what the run starts from."""
    if cfg.resume not in ("auto", "never"):
        raise ConfigError("resume", cfg.resume, "must be auto or never")
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
    """Widths, depths and patches that must divide or bound one another."""
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
    patch = at(cfg, "architecture.stem.patch")
    if patch is not None and cfg.transform.size % patch:
        raise ConfigError(
            "transform.size",
            cfg.transform.size,
            f"must be a multiple of architecture.stem.patch={patch}",
        )


def check_targets(cfg: Any) -> None:
    """The teacher has as many blocks as targets are made of."""
    top_k, depth = cfg.objective.targets.top_k, cfg.encoder.depth
    if not 1 <= top_k <= depth:
        rule = f"must be between 1 and encoder.depth={depth}"
        raise ConfigError(
            "objective.targets.top_k", top_k, rule, "the targets average that many last blocks"
        )


def check_groups(cfg: Any) -> None:
    """Grouped convolutions need channels that divide evenly."""
    for node, channels in (
        ("architecture.positions", ("width",)),
        ("objective.predictor", ("width", "dim")),
    ):
        groups = at(cfg, f"{node}.groups")
        for side in channels if groups is not None else ():
            size = at(cfg, f"{node}.{side}")
            if size % groups:
                raise ConfigError(f"{node}.groups", groups, f"must divide {node}.{side}={size}")


def check_view(cfg: Any) -> None:
    """Tokens can only be dropped if every row keeps the same number, and a head only reads tokens
    that are there."""
    drops = cfg.objective.view._target_.endswith("Drop")
    unequal = at(cfg, "masking.equal") is False or _class(cfg.masking) == "RectangleMask"
    if drops and unequal:
        remedy = "choose masking=block, inverse_block or token, or objective=data2vec1"
        raise ConfigError(
            "masking", _class(cfg.masking), "masks a different number of tokens in each row", remedy
        )
    if drops and _class(cfg.objective.predictor) == "Head":
        raise ConfigError(
            "objective.predictor",
            "Head",
            "cannot predict tokens that were dropped",
            "use ConvDecoder",
        )
    stem_has_vector = at(cfg, "architecture.stem.masked")
    if not drops and stem_has_vector is False:
        raise ConfigError(
            "architecture.stem.masked",
            False,
            "must be true where masked tokens are replaced",
            "leave it to the recipe",
        )


def check_mask(cfg: Any) -> None:
    """Masks fit into the token grid."""
    mask, grid = cfg.masking, token_grid(cfg)
    size = grid[0] if len(grid) == 1 else min(grid)
    if len(grid) != 2 and _class(mask) == "RectangleMask":
        raise ConfigError("masking", "rectangle", "needs images", "choose span, block or token")
    dims = at(cfg, "objective.predictor.dims")
    if dims not in (None, len(grid)):
        raise ConfigError(
            "objective.predictor.dims", dims, f"must be {len(grid)}, as the tokens lie"
        )
    if "prob" in mask and not 0 < mask.prob < 1:
        raise ConfigError("masking.prob", mask.prob, "must lie between 0 and 1")
    if "length" in mask and not 1 <= mask.length < size:
        raise ConfigError(
            "masking.length",
            mask.length,
            f"must be less than the {size} tokens along a side of the input",
        )
    if "count" in mask and not 1 <= mask.count < grid[0] * grid[-1]:
        raise ConfigError(
            "masking.count",
            mask.count,
            f"must be less than the {grid[0] * grid[-1]} patches of an image",
        )
    if at(cfg, "masking.random_prob") and at(cfg, "architecture.stem.vocabulary") is None:
        raise ConfigError("masking.random_prob", mask.random_prob, "needs a text stem")


def token_grid(cfg: Any) -> tuple[int, ...]:
    """Tokens of the longest input: (T,), or (rows, columns) for images."""
    if at(cfg, "architecture.stem.patch") is not None:
        side = cfg.transform.size // cfg.architecture.stem.patch
        return (side, side)
    if at(cfg, "transform.crop_seconds") is None:
        return (int(cfg.transform.block),)
    length = round(cfg.transform.crop_seconds * 16_000)
    for _, kernel, stride in cfg.architecture.stem.layers:
        length = (length - kernel) // stride + 1
    return (length,)


def check_devices(cfg: Any) -> None:
    """There is such a device, and the batch divides over all of them."""
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


def _class(node: Any) -> str:
    return node._target_.rpartition(".")[2]


RULES: tuple[Callable[[Any], None], ...] = (
    check_going_on,
    check_sizes,
    check_groups,
    check_devices,
)
METHOD_RULES = (check_targets, check_view, check_mask)  # of pretraining
