"""plain(): a configuration that was stored in a file, as plain values. None of them is resolved,
imported or called."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.redaction import concealed

Keys = tuple[str | int, ...]  # of nested mappings and lists, from the outside in
_SCALARS = (str, int, float, bool, type(None))
_MOST = 100_000  # values in a configuration; ours have a few hundred
_DEEPEST = 40


def plain(text: Any, file: Path) -> dict[str, Any]:
    """The configuration in a text.

    Args:
        text: YAML or JSON, as a checkpoint holds it.
        file: where it comes from, for the message.

    Returns:
        Mappings, lists, strings, numbers, booleans and None. A string with
        ``${…}`` stays as it is.

    Raises:
        ConfigError: it is neither, or holds something else, such as a YAML tag that asks for an
            object of Python.
    """
    try:
        if not isinstance(text, str):
            raise TypeError(f"it is of type {type(text).__name__}")
        content = _copied(_parsed(text), iter(range(_MOST)))
        if not isinstance(content, dict):
            raise TypeError("it is no mapping of settings")
        return content
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        rule = f"holds a configuration that is not of plain values ({said}); nothing in it was run"
        raise ConfigError("file", file, rule, "use a file that this program wrote") from None


def _parsed(text: str) -> Any:
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError:  # YAML may begin with a brace too
            pass
    return yaml.safe_load(text)


def _copied(value: Any, left: Iterator[int], depth: int = 0) -> Any:
    """A copy of plain values. A few bytes of YAML can stand for endless ones by its references, so
    depth and number are limited."""
    if depth > _DEEPEST or next(left, None) is None:
        raise ValueError(f"more than {_MOST:,} values, or nested more than {_DEEPEST} deep")
    if isinstance(value, list):
        return [_copied(item, left, depth + 1) for item in value]
    if isinstance(value, dict):
        if odd := [key for key in value if not isinstance(key, str | int | float)]:
            raise TypeError(f"the key {odd[0]!r} is no name")
        return {key: _copied(item, left, depth + 1) for key, item in value.items()}
    if not isinstance(value, _SCALARS):
        raise TypeError(f"a value is of type {type(value).__name__}")
    return value


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """A configuration that was composed from what the user typed, as plain values, without
    secrets."""
    return concealed(OmegaConf.to_container(cfg, resolve=True))


def text_of(cfg: DictConfig) -> str:
    """A composed configuration as it is stored: YAML with all values filled in, without secrets."""
    return OmegaConf.to_yaml(literal(resolved(cfg)), resolve=True)


def literal(content: Mapping[str, Any]) -> DictConfig:
    """Plain values for reading with dots. Every string stands for itself, ``${oc.env:HOME}`` too.

    For reading alone: ``hydra.utils.instantiate`` would resolve such a string after all.
    """
    return OmegaConf.create(_escaped(dict(content)))


def checked(node: dict[str, Any], file: Path) -> dict[str, Any]:
    """The same node, if it may become a part of a configuration that Hydra resolves.

    Raises:
        ConfigError: a key or a value of it would not stand for itself there.
    """
    for path, value in leaves(node):
        odd = [part for part in path if isinstance(part, str) and not part.isidentifier()]
        if odd or (isinstance(value, str) and "${" in value):
            key, rule = ".".join(map(str, path)), f"stands in {file} and is no plain value"
            raise ConfigError(key, value, rule, "type that setting yourself")
    return node


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, str) and "${" in value:
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return value


def moved(value: Any, before: str, now: str) -> Any:
    """The values with the paths in a folder changed, because the folder was moved.

    Args:
        value: plain values.
        before: the folder as the values name it.
        now: where it is.
    """
    if isinstance(value, dict):
        return {key: moved(item, before, now) for key, item in value.items()}
    if isinstance(value, list):
        return [moved(item, before, now) for item in value]
    if isinstance(value, str) and value.startswith(f"{before}/"):
        return now + value.removeprefix(before)
    return value


def at(content: Any, path: Keys) -> Any:
    """The value at a path of keys and numbers; None if there is none."""
    for part in path:
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):
            return None
    return content


def leaves(value: Any, path: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Every value that is no mapping and no list, with its path."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in pairs:
            yield from leaves(item, (*path, key))
    else:
        yield path, value
