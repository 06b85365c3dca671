"""Composes configurations, with our resolvers, and checks them before anything is allocated."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from d2v_pretrain.config import naming
from d2v_pretrain.config.recipes import config_folder, folders_of, for_hydra
from d2v_pretrain.config.rules import RULES, check_data, check_finite, check_numbers
from d2v_pretrain.config.typed_groups import settle
from d2v_pretrain.errors import ConfigError

_SPECIAL = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
_SIMPLE: dict[str, Any] = {
    "int": int,
    "float": (int, float),
    "bool": bool,
    "str": str,
    "None": type(None),
}


def choices(group: str) -> list[str]:
    """The names that may follow ``group=``, e.g. of ``masking`` or ``hydra/launcher``."""
    return folders_of(()).choices(group)


def data_sets() -> list[str]:
    """The names that may follow ``data=``: ``folder`` stands for audio_folder, text_folder and
    vision_folder."""
    modalities = tuple(f"{name}_" for name in choices("modality"))
    names = choices("data")
    return sorted({n.partition("_")[2] if n.startswith(modalities) else n for n in names})


def _share(x: float, least: int = 0, *, _root_: DictConfig) -> int:
    return max(least, int(x * _root_.steps))


def _patches(x: float, *, _root_: DictConfig) -> int:
    """A share of the patches of an image."""
    return max(1, int(x * (_root_.transform.size // _root_.architecture.stem.patch) ** 2))


def register_resolvers() -> None:
    """Make our ``${...:}`` functions known to OmegaConf; may be called again."""
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("swept", naming.swept_part, replace=True)
    OmegaConf.register_new_resolver("share", _share, replace=True)
    OmegaConf.register_new_resolver("patches", _patches, replace=True)
    OmegaConf.register_new_resolver("replaces_masked", replaces_masked, replace=True)
    OmegaConf.register_new_resolver("ratio", lambda a, b: a // b, replace=True)
    OmegaConf.register_new_resolver("precision_here", precision_here, replace=True)
    OmegaConf.register_new_resolver("devices_here", devices_here, replace=True)


def run_name(chosen: Mapping[str, str | None], *, _root_: DictConfig) -> str:
    """The name of a run for which none is typed: the recipe's name, each chosen group that differs
    from the recipe, and each typed setting that makes it another run than the recipe's.

    Args:
        chosen: group -> choice, as Hydra composed them.
    """
    typed = typed_words()
    folders = folders_of(typed)
    row = folders.recipe(str(chosen["recipe"]))
    groups = [key for key in map(naming.key_of, typed) if key in folders.groups()]
    keys = naming.naming_keys(typed, groups)
    if keys:
        choices = ((group, chosen.get(group)) for group in groups)
        words = [f"{group}={choice or 'null'}" for group, choice in choices]
        words += [word for word in typed if word.startswith("conf=")]
        plain = _plain(tuple(words), os.getcwd())
        keys = [key for key in keys if _differs(plain, _root_, key)]
    return naming.run_name(row, chosen, keys, _root_)


@cache
def _plain(words: tuple[str, ...], folder: str) -> DictConfig:
    """The configuration of these words, composed in this folder. It is kept, because a name is
    resolved about a hundred times while one configuration is composed."""
    with _hydra_set_aside():
        return load(words)


def typed_words() -> list[str]:
    """The words that Hydra has composed the configuration at hand from, as they were typed."""
    from hydra.core.hydra_config import HydraConfig

    # A word such as folder=out/${name} would be resolved otherwise.
    return list(OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False))  # type: ignore[arg-type]


@contextmanager
def _hydra_set_aside() -> Iterator[None]:
    """Allow another configuration to be composed while Hydra is at work on one."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    hydra, cfg = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = hydra, cfg


def _differs(one: DictConfig, other: DictConfig, key: str) -> bool:
    return bool(OmegaConf.select(one, key) != OmegaConf.select(other, key))


def replaces_masked(_root_: DictConfig) -> bool:
    """Whether the objective replaces masked tokens by a learned vector, which the stem holds."""
    from hydra.utils import get_class

    return bool(get_class(_root_.objective.view._target_).replaces)  # type: ignore[attr-defined]


def precision_here() -> str:
    """``bf16-mixed`` on a GPU that supports bf16, else ``32-true``."""
    import torch

    return (
        "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"
    )


def devices_here() -> int:
    """The number of GPUs of this machine; 1 if it has none."""
    import torch

    return max(1, torch.cuda.device_count())


def load(typed: Sequence[str]) -> DictConfig:
    """Compose a configuration: ``load(["modality=audio", "steps=10"])``.

    Args:
        typed: words as on the command line of ``train.py``.

    Raises:
        ConfigError, or an error of Hydra, which ``config.explain.in_words`` turns into a sentence.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig

    register_resolvers()
    words = for_hydra(typed)
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = compose("pretrain", words, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    complete(cfg, words)
    return cfg


def complete(cfg: DictConfig, words: Sequence[str]) -> None:
    """Let typed groups win (see ``settle``), and give the run its name.

    Args:
        cfg: composed by Hydra; changed in place.
        words: that it was composed from.
    """
    settle(cfg, words)
    # Their resolvers read Hydra's global state, which the next composition replaces.
    for key in ("recipe", "name"):
        cfg[key] = cfg[key]


def check(cfg: DictConfig) -> None:
    """Every rule that a composed configuration must satisfy. Imports classes, builds and allocates
    nothing.

    Raises:
        ConfigError: naming the key as the user types it, its value, the rule and a remedy.
    """
    from hydra.utils import instantiate

    check_finite(OmegaConf.to_container(cfg, resolve=False))
    for rule in (check_data, _check_missing, check_numbers, _check_constructors, *RULES):
        rule(cfg)
    instantiate(cfg.task).check(cfg)


def _check_missing(cfg: DictConfig) -> None:
    for key in sorted(_missing(cfg)):
        raise ConfigError(key, "???", "has no value", f"type {key}=…")


def _missing(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """Keys that have no value (``???``), without the keys that refer to another such key."""
    for key in map(str, cfg):
        if OmegaConf.is_interpolation(cfg, key):
            continue
        if OmegaConf.is_missing(cfg, key):
            yield f"{prefix}{key}"
        elif isinstance(cfg[key], DictConfig):
            yield from _missing(cfg[key], f"{prefix}{key}.")


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
    """Check that each key of a node is an argument of its constructor and has the right simple
    type, and that no argument without a default is missing."""
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
