"""Where conf/ is, resolvers, and the checks that a configuration must pass before anything is
allocated."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from d2v_pretrain.config.rules import METHOD_RULES, RULES, check_numbers
from d2v_pretrain.errors import ConfigError

_SPECIAL = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
_SIMPLE: dict[str, Any] = {
    "int": int,
    "float": (int, float),
    "bool": bool,
    "str": str,
    "None": type(None),
}


def config_folder() -> Path:
    """``conf/``: inside the package when installed from a wheel, beside it in a clone or an
    editable install."""
    package = Path(__file__).parent.parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "pretrain.yaml").is_file():
            return folder
    raise ConfigError(
        "conf", package, "has no configurations beside it", "install d2v_pretrain again"
    )


def choices(group: str) -> list[str]:
    """The names that may follow ``group=``, e.g. of ``masking`` or ``hydra/launcher``."""
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))


def _share(x: float, least: int = 0, *, _root_: DictConfig) -> int:
    return max(least, int(x * _root_.steps))


def register_resolvers() -> None:
    """Make our ``${...:}`` functions known to OmegaConf; may be called again."""
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("share", _share, replace=True)
    OmegaConf.register_new_resolver("ratio", lambda a, b: a // b, replace=True)
    OmegaConf.register_new_resolver("precision_here", precision_here, replace=True)
    OmegaConf.register_new_resolver("devices_here", devices_here, replace=True)


def run_name(chosen: Mapping[str, str | None]) -> str:
    """A run's name if none is typed: the experiment's, else modality, objective, encoder, data and
    unusual choices.

    Args:
        chosen: choice by group.
    """
    if chosen["experiment"] is not None:
        return str(chosen["experiment"])
    name = "_".join(str(chosen[group]) for group in ("modality", "objective", "encoder", "data"))
    usual = f"{chosen['modality']}_{chosen['objective']}"
    groups = {"architecture": f"small_{usual}", "masking": usual}
    changed = [str(chosen[group]) for group, choice in groups.items() if chosen[group] != choice]
    return "_".join([name, *changed])


def precision_here() -> str:
    """``bf16-mixed`` on a GPU that has it, ``32-true`` elsewhere."""
    import torch

    return (
        "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"
    )


def devices_here() -> int:
    """GPUs of this machine, 1 without any."""
    import torch

    return max(1, torch.cuda.device_count())


def load(overrides: Sequence[str], root: str = "pretrain") -> DictConfig:
    """Compose a configuration outside of the command line, for tests and notebooks:
    ``load(["modality=audio"])``."""
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
        f"~{key}" if value == "null" and key in groups else a
        for a in arguments
        for key, _, value in [a.partition("=")]
    ]


def check(cfg: DictConfig) -> None:
    """Every rule that a composed configuration must satisfy. Imports classes, builds and allocates
    nothing.

    Raises:
        ConfigError: naming the key as the user types it, its value, the rule and a remedy.
    """
    method = METHOD_RULES if cfg.task == "pretrain" else ()
    for rule in (
        _check_experiment,
        _check_missing,
        check_numbers,
        _check_constructors,
        *RULES,
        *method,
    ):
        rule(cfg)


def _check_missing(cfg: DictConfig) -> None:
    for key in sorted(_missing(cfg)):
        raise ConfigError(key, "???", "has no value", f"type {key}=…")


def _missing(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """Keys without a value of their own; not those that point to such a key."""
    for key in map(str, cfg):
        if OmegaConf.is_interpolation(cfg, key):
            continue
        if OmegaConf.is_missing(cfg, key):
            yield f"{prefix}{key}"
        elif isinstance(cfg[key], DictConfig):
            yield from _missing(cfg[key], f"{prefix}{key}.")


def _check_experiment(cfg: DictConfig) -> None:
    """A published row fits the modality and objective in its name only."""
    from hydra.core.hydra_config import HydraConfig

    chosen = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    words = set(str(chosen["experiment"]).split("_")) if chosen else set()
    for group in ("modality", "objective"):
        meant = words & set(choices(group))
        if meant and chosen[group] not in meant:
            raise ConfigError(
                "experiment",
                chosen["experiment"],
                f"is not for {group}={chosen[group]}",
                f"leave out {group}=",
            )


def _check_constructors(cfg: DictConfig) -> None:
    for path, node in _constructors(cfg):
        _check_arguments(path, node)


def _constructors(cfg: DictConfig, prefix: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Every node that names a ``_target_``, once, with its path."""
    for key in map(str, cfg):
        if OmegaConf.is_interpolation(cfg, key) or not isinstance(node := cfg[key], DictConfig):
            continue
        if "_target_" in node:
            yield f"{prefix}{key}", node
        yield from _constructors(node, f"{prefix}{key}.")


def _check_arguments(path: str, node: DictConfig) -> None:
    """The keys of a node are its constructor's arguments, every one that has no default, of the
    right simple type."""
    from hydra.utils import get_object

    target = get_object(node["_target_"])
    known = inspect.signature(target).parameters
    if any(p.kind == p.VAR_KEYWORD for p in known.values()):
        return
    owner, given = (
        node["_target_"].rpartition(".")[2],
        [str(key) for key in node if key not in _SPECIAL],
    )
    for key in given:
        if key not in known:
            raise ConfigError(
                f"{path}.{key}",
                node[key],
                f"is not an argument of {owner}",
                f"it takes {', '.join(known)}",
            )
        _check_type(f"{path}.{key}", node[key], str(known[key].annotation))
    needed = [k for k, p in known.items() if p.default is p.empty and k not in given]
    if needed and "_partial_" not in node:
        raise ConfigError(
            f"{path}.{needed[0]}", "", f"is needed by {owner}", f"type +{path}.{needed[0]}=…"
        )


def _check_type(key: str, value: Any, annotation: str) -> None:
    parts = annotation.split(" | ")
    if isinstance(value, DictConfig | ListConfig) or not set(parts) <= set(_SIMPLE):
        return
    fits = any(
        isinstance(value, _SIMPLE[part]) and (part == "bool") == isinstance(value, bool)
        for part in parts
    )
    if not fits:
        raise ConfigError(
            key, value, f"must be {annotation.replace(' | ', ' or ').replace('None', 'null')}"
        )
