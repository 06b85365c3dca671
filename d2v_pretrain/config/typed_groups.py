"""settle(): a group that the user types replaces everything that the recipe sets in that group."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, OmegaConfBaseException

from d2v_pretrain.config.recipes import folders_of
from d2v_pretrain.errors import ConfigError, nearest


def settle(cfg: DictConfig, words: Sequence[str]) -> None:
    """Let each group that the user types replace everything that the recipe sets in that group.

    Values that the group's file leaves open (``???``) still come from the recipe. A node for which
    the recipe names a class (``_target_``) has only what the recipe sets in it.

    Args:
        cfg: composed by Hydra; changed in place.
        words: the words of the command line that Hydra has composed ``cfg`` from.

    Raises:
        ConfigError: a value is typed that the typed group does not have.
    """
    folders = folders_of(words)
    row = folders.recipe(cfg.recipe)
    typed = OverridesParser.create().parse_overrides(list(words))
    chosen = {w.key_or_group: str(w.value()) for w in typed if w.type == OverrideType.CHANGE}
    chosen = {group: choice for group, choice in chosen.items() if group in row.groups}
    for path, node in _with_target(row.values):
        _put(cfg, path, node, typed, f"recipe={row.name}")
    for group, choice in chosen.items():
        if group in row.values:
            file = folders.find(group, choice)
            assert file is not None, "Hydra has found it before"
            whole = OmegaConf.load(file)
            assert isinstance(whole, DictConfig)
            _fill(whole, row.values[group])
            _put(cfg, group, whole, typed, f"{group}={choice}")
    for group, choice in chosen.items():
        _check_resolves(cfg, group, choice, typed)


def _with_target(node: DictConfig, prefix: str = "") -> Iterator[tuple[str, DictConfig]]:
    """The nodes that name a class (``_target_``), each with its dotted path."""
    for key in map(str, node):
        value = node._get_node(key)
        if isinstance(value, DictConfig) and not value._is_interpolation():
            if "_target_" in value:
                yield f"{prefix}{key}", value
            else:
                yield from _with_target(value, f"{prefix}{key}.")


def _put(
    cfg: DictConfig, path: str, node: DictConfig, typed: Sequence[Override], owner: str
) -> None:
    """Replace what Hydra has merged at ``path`` by ``node``, and set the values typed below it
    again."""
    with open_dict(cfg):
        OmegaConf.update(cfg, path, node, merge=False)
        for word in typed:
            if word.key_or_group.startswith(f"{path}."):
                _apply(cfg, word, owner)


def _fill(node: DictConfig, pinned: DictConfig) -> None:
    """Take what a group's file leaves open (``???``) from the values that a recipe sets."""
    for key in [key for key in map(str, node) if key in pinned]:
        value = node._get_node(key)
        if OmegaConf.is_missing(node, key):
            node[key] = pinned._get_node(key)
        elif isinstance(value, DictConfig) and OmegaConf.is_dict(pinned._get_node(key)):
            _fill(value, pinned[key])


def _check_resolves(cfg: DictConfig, group: str, choice: str, typed: Sequence[Override]) -> None:
    """Refuse a typed group that reads a value which this run does not have."""
    try:
        OmegaConf.to_container(cfg[group], resolve=True)
    except OmegaConfBaseException as error:
        if any(w.key_or_group.startswith(f"{group}.") and "${" in str(w.input_line) for w in typed):
            raise  # a value that was typed, and not the group, reads it
        found = re.search(r"key '([\w.]+)' not found", str(error))
        what = found[1] if found else _absent_key(error) or str(error).splitlines()[0]
        rule = f"needs {what}, which modality={cfg['modality']} does not have"
        raise ConfigError(group, choice, rule, f"leave out {group}=, or choose another") from None


def _absent_key(error: BaseException | None) -> str | None:
    """The key that one of our resolvers could not find; None if the error is another."""
    while error is not None:
        if isinstance(error, ConfigAttributeError):
            return str(error.full_key)
        error = error.__cause__ or error.__context__
    return None


def _apply(cfg: DictConfig, word: Override, owner: str) -> None:
    """Set one typed value again, in a node that has just been replaced."""
    key = word.key_or_group
    parent, _, last = key.rpartition(".")
    node: Any = OmegaConf.select(cfg, parent)
    known = [str(k) for k in node or () if k != "_target_"]
    if word.type == OverrideType.DEL:
        node.pop(last, None)
    elif last in known or word.type in (OverrideType.ADD, OverrideType.FORCE_ADD):
        OmegaConf.update(cfg, key, word.value())
    else:
        rule = f"is not a setting of {owner}{nearest(last, known)}"
        remedy = f"it has {', '.join(known)}" if known else ""
        raise ConfigError(key, word.value(), rule, remedy)
