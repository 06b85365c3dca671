"""Where conf/ is, resolvers, and the checks that a configuration must pass before anything is allocated."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from d2v_pretrain.errors import ConfigError

_SPECIAL = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
_SIMPLE = {"int": int, "float": (int, float), "bool": bool, "str": str, "None": type(None)}
_POSITIVE = ("steps", "global_batch", "micro_batch", "log_every", "lr", "checkpoint.keep_last")
_POSITIVE_OR_NULL = ("max_hours", "max_tokens", "clip", "checkpoint.every_steps", "checkpoint.every_minutes")


def config_folder() -> Path:
    """``conf/``: inside the package when installed from a wheel, beside it in a clone or an editable install."""
    package = Path(__file__).parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "pretrain.yaml").is_file():
            return folder
    raise ConfigError("conf", package, "has no configurations beside it", "install d2v_pretrain again")


def choices(group: str) -> list[str]:
    """The names that may follow ``group=``, e.g. of ``masking`` or ``hydra/launcher``."""
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))


def register_resolvers() -> None:
    """Make our ``${...:}`` functions known to OmegaConf; may be called again."""
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("share", lambda x, *, _root_: int(x * _root_.steps), replace=True)
    OmegaConf.register_new_resolver("ratio", lambda a, b: a // b, replace=True)
    OmegaConf.register_new_resolver("precision_here", precision_here, replace=True)
    OmegaConf.register_new_resolver("devices_here", devices_here, replace=True)


def run_name(chosen: Mapping[str, str | None]) -> str:
    """A run's name if none is typed: the experiment's, else modality, objective, encoder and data.

    Args:
        chosen: choice by group.
    """
    if chosen["experiment"] is not None:
        return str(chosen["experiment"])
    return "_".join(str(chosen[group]) for group in ("modality", "objective", "encoder", "data"))


def precision_here() -> str:
    """``bf16-mixed`` on a GPU that has it, ``32-true`` elsewhere."""
    import torch

    return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"


def devices_here() -> int:
    """GPUs of this machine, 1 without any."""
    import torch

    return max(1, torch.cuda.device_count())


def load(overrides: Sequence[str], root: str = "pretrain") -> DictConfig:
    """Compose a configuration outside of the command line, for tests and notebooks: ``load(["modality=audio"])``."""
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig

    register_resolvers()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = compose(root, spelled_for_hydra(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def spelled_for_hydra(arguments: Sequence[str]) -> list[str]:
    """``probe=null`` and the like as Hydra spells "no choice of this group": ``~probe``."""
    groups = {path.name for path in config_folder().iterdir() if path.is_dir()}
    return [
        f"~{key}" if value == "null" and key in groups else a for a in arguments for key, _, value in [a.partition("=")]
    ]


def check(cfg: DictConfig) -> None:
    """Every rule that a composed configuration must satisfy. Imports classes, builds and allocates nothing.

    Raises:
        ConfigError: naming the key as the user types it, its value, the rule and a remedy.
    """
    _check_missing(cfg)
    for path, node in _constructors(cfg):
        _check_arguments(path, node)
    for rule in (
        _check_numbers,
        _check_going_on,
        _check_sizes,
        _check_groups,
        _check_view,
        _check_mask,
        _check_devices,
    ):
        rule(cfg)


def _check_missing(cfg: DictConfig) -> None:
    for key in sorted(_missing(cfg)):
        raise ConfigError(key, "???", "has no value", f"type {key}=…")


def _missing(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """Keys without a value of their own; not those that point to such a key."""
    for key in cfg:
        if OmegaConf.is_interpolation(cfg, key):
            continue
        if OmegaConf.is_missing(cfg, key):
            yield f"{prefix}{key}"
        elif isinstance(cfg[key], DictConfig):
            yield from _missing(cfg[key], f"{prefix}{key}.")


def _constructors(cfg: DictConfig, prefix: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Every node that names a ``_target_``, once, with its path."""
    for key in cfg:
        if OmegaConf.is_interpolation(cfg, key) or not isinstance(node := cfg[key], DictConfig):
            continue
        if "_target_" in node:
            yield f"{prefix}{key}", node
        yield from _constructors(node, f"{prefix}{key}.")


def _check_arguments(path: str, node: DictConfig) -> None:
    """The keys of a node are its constructor's arguments, every one that has no default, of the right simple type."""
    from hydra.utils import get_object

    target = get_object(node["_target_"])
    known = inspect.signature(target).parameters
    if any(p.kind == p.VAR_KEYWORD for p in known.values()):
        return
    owner, given = node["_target_"].rpartition(".")[2], [str(key) for key in node if key not in _SPECIAL]
    for key in given:
        if key not in known:
            raise ConfigError(
                f"{path}.{key}", node[key], f"is not an argument of {owner}", f"it takes {', '.join(known)}"
            )
        _check_type(f"{path}.{key}", node[key], str(known[key].annotation))
    needed = [k for k, p in known.items() if p.default is p.empty and k not in given]
    if needed and "_partial_" not in node:
        raise ConfigError(f"{path}.{needed[0]}", "", f"is needed by {owner}", f"type +{path}.{needed[0]}=…")


def _check_type(key: str, value: Any, annotation: str) -> None:
    parts = annotation.split(" | ")
    if isinstance(value, DictConfig | ListConfig) or not set(parts) <= set(_SIMPLE):
        return
    fits = any(isinstance(value, _SIMPLE[part]) and (part == "bool") == isinstance(value, bool) for part in parts)
    if not fits:
        raise ConfigError(key, value, f"must be {annotation.replace(' | ', ' or ').replace('None', 'null')}")


def _check_numbers(cfg: DictConfig) -> None:
    for key in (*_POSITIVE, *_POSITIVE_OR_NULL):
        value = OmegaConf.select(cfg, key)
        if value is None and key in _POSITIVE_OR_NULL:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ConfigError(key, value, "must be a positive number")
    if cfg.warmup >= cfg.steps:
        raise ConfigError("warmup", cfg.warmup, f"must be less than steps={cfg.steps}")
    if not 0 <= cfg.ema.start <= cfg.ema.end <= 1:
        raise ConfigError(
            "ema.start", cfg.ema.start, f"must lie between 0 and ema.end={cfg.ema.end}, which is at most 1"
        )


def _check_going_on(cfg: DictConfig) -> None:
    if cfg.task != "pretrain":
        raise ConfigError("task", cfg.task, "must be pretrain", "fine-tuning is not part of this version")
    if cfg.resume not in ("auto", "never"):
        raise ConfigError("resume", cfg.resume, "must be auto or never")
    if not str(cfg.name) or set(str(cfg.name)) & set('/\\:*?"<>| '):
        raise ConfigError("name", cfg.name, "must be usable as the name of a folder", "leave out spaces and slashes")
    if cfg.init_from is not None and not Path(cfg.init_from).is_file():
        raise ConfigError("init_from", cfg.init_from, "is not a file", "give the path of a checkpoint")


def _check_sizes(cfg: DictConfig) -> None:
    encoder, target = cfg.encoder, cfg.objective.targets
    if encoder.width % encoder.heads:
        raise ConfigError("encoder.heads", encoder.heads, f"must divide encoder.width={encoder.width}")
    if not 1 <= target.top_k <= encoder.depth:
        rule = f"must be between 1 and encoder.depth={encoder.depth}"
        raise ConfigError("objective.targets.top_k", target.top_k, rule, "the targets average that many last blocks")
    if cfg.objective.cls_weight and not OmegaConf.select(cfg, "architecture.extra_tokens"):
        raise ConfigError("objective.cls_weight", cfg.objective.cls_weight, "needs an architecture with a CLS token")
    patch = OmegaConf.select(cfg, "architecture.stem.patch")
    if patch is not None and cfg.source.size % patch:
        raise ConfigError("source.size", cfg.source.size, f"must be a multiple of architecture.stem.patch={patch}")


def _check_groups(cfg: DictConfig) -> None:
    """Grouped convolutions need channels that divide evenly."""
    for node, channels in (("architecture.positions", ("width",)), ("objective.predictor", ("width", "dim"))):
        groups = OmegaConf.select(cfg, f"{node}.groups")
        for side in channels if groups is not None else ():
            size = OmegaConf.select(cfg, f"{node}.{side}")
            if size % groups:
                raise ConfigError(f"{node}.groups", groups, f"must divide {node}.{side}={size}")


def _check_view(cfg: DictConfig) -> None:
    """Tokens can only be dropped if every row keeps the same number, and a head only reads tokens that are there."""
    drops = cfg.objective.view._target_.endswith("Drop")
    unequal = OmegaConf.select(cfg, "masking.equal") is False or _class(cfg.masking) == "RectangleMask"
    if drops and unequal:
        remedy = "choose masking=block, inverse_block or token, or objective=data2vec1"
        raise ConfigError("masking", _class(cfg.masking), "masks a different number of tokens in each row", remedy)
    if drops and _class(cfg.objective.predictor) == "Head":
        raise ConfigError("objective.predictor", "Head", "cannot predict tokens that were dropped", "use ConvDecoder")
    stem_has_vector = OmegaConf.select(cfg, "architecture.stem.masked")
    if not drops and stem_has_vector is False:
        raise ConfigError(
            "mask_vector", False, "must be true where masked tokens are replaced", "leave it to objective="
        )


def _check_mask(cfg: DictConfig) -> None:
    mask, grid = cfg.masking, token_grid(cfg)
    size = grid[0] if len(grid) == 1 else min(grid)
    if len(grid) != 2 and _class(mask) == "RectangleMask":
        raise ConfigError("masking", "rectangle", "needs images", "choose span, block or token")
    if len(grid) == 2 and cfg.objective.predictor._target_.endswith("ConvDecoder") != (
        OmegaConf.select(cfg, "objective.predictor.dims") == 2
    ):
        raise ConfigError("objective.predictor.dims", cfg.objective.predictor.dims, "must be 2 for images")
    if "prob" in mask and not 0 < mask.prob < 1:
        raise ConfigError("masking.prob", mask.prob, "must lie between 0 and 1")
    if "length" in mask and not 1 <= mask.length < size:
        raise ConfigError(
            "masking.length", mask.length, f"must be less than the {size} tokens along a side of the input"
        )
    if "count" in mask and not 1 <= mask.count < grid[0] * grid[-1]:
        raise ConfigError(
            "masking.count", mask.count, f"must be less than the {grid[0] * grid[-1]} patches of an image"
        )
    if OmegaConf.select(cfg, "masking.random_prob") and OmegaConf.select(cfg, "architecture.stem.vocabulary") is None:
        raise ConfigError("masking.random_prob", mask.random_prob, "needs a text stem")


def token_grid(cfg: DictConfig) -> tuple[int, ...]:
    """Tokens of the longest input: (T,), or (rows, columns) for images."""
    if OmegaConf.select(cfg, "architecture.stem.patch") is not None:
        side = cfg.source.size // cfg.architecture.stem.patch
        return (side, side)
    if OmegaConf.select(cfg, "source.crop_seconds") is None:
        return (int(cfg.source.block),)
    length = round(cfg.source.crop_seconds * 16_000)
    for _, kernel, stride in cfg.architecture.stem.layers:
        length = (length - kernel) // stride + 1
    return (length,)


def _check_devices(cfg: DictConfig) -> None:
    trainer = cfg.trainer
    if trainer.accelerator == "gpu":
        import torch

        if not torch.cuda.is_available():
            raise ConfigError("trainer", "gpu", "needs a GPU and torch sees none", "type trainer=cpu")
    world = trainer.devices * trainer.num_nodes if isinstance(trainer.devices, int) else 1
    unit = cfg.micro_batch * world
    if cfg.global_batch % unit:
        rule = f"must be a multiple of micro_batch x devices = {cfg.micro_batch} x {world}"
        nearest = max(unit, round(cfg.global_batch / unit) * unit)
        raise ConfigError(
            "global_batch", cfg.global_batch, rule, f"type global_batch={nearest}, or another micro_batch"
        )


def _class(node: DictConfig) -> str:
    return node._target_.rpartition(".")[2]
