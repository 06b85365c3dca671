"""Any error of composing a configuration as one sentence: the key, its value, the nearest valid
ones, the file."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from d2v_pretrain.config.compose import choices, config_folder, load
from d2v_pretrain.config.recipes import folders_of
from d2v_pretrain.errors import ConfigError, nearest


def in_words(error: Exception) -> ConfigError:
    """Any error of composing a configuration as one of ours; an error in building an object shows
    its cause."""
    if isinstance(error, ConfigError):
        return error
    cause = error.__cause__
    if isinstance(cause, ConfigError):
        return cause
    if isinstance(error, MissingConfigException):
        return _no_such_choice(error)
    if isinstance(error, OverrideParseException):
        return ConfigError(
            error.override,
            "",
            "is not of the form key=value",
            "put values with spaces or commas in quotes",
        )
    message = str(error)
    if found := re.search(r"You must specify '(\S+)'", message):
        return ConfigError(
            found[1], "???", "has no value", f"choose one of {', '.join(choices(found[1]))}"
        )
    if found := re.search(r"Could not override '([^'\s]+)'", message):
        return _no_such_key(found[1])
    if isinstance(error, InterpolationResolutionError):
        return ConfigError(
            str(error.full_key), "", f"cannot be worked out: {message.splitlines()[0]}"
        )
    if (
        isinstance(error, HydraException)
        and cause is not None
        and not isinstance(cause, OmegaConfBaseException)
    ):
        raise error  # a constructor failed: ours to mend, with its trace
    return ConfigError("configuration", "", message.splitlines()[0])


def _no_such_choice(error: MissingConfigException) -> ConfigError:
    missing, options = error.missing_cfg_file or "", list(error.options or [])
    group, _, choice = missing.rpartition("/")
    rule = f"is not there{nearest(choice, options)}"
    return ConfigError(group, choice, rule, f"choose one of {', '.join(options)}")


def _no_such_key(key: str) -> ConfigError:
    """A misspelt key, with what was probably meant among the keys and groups of this run."""
    typed = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    given = dict(word.lstrip("+~").split("=", 1) for word in typed)
    value = given.get(key, "")
    kept = [word for word in typed if word.partition("=")[0].lstrip("+~") != key]
    try:
        keys = set(_keys(load(kept)))
    except Exception:  # another key is wrong too: then look among those of a run without any
        keys = set(_keys(load(["modality=audio"])))
    home = config_folder()
    near = nearest(key, sorted(keys | folders_of(typed, home).groups()))
    if key.startswith("data.") and not near and str(given.get("data", "sample")) == "sample":
        rule = "is not a setting of the embedded data"
        remedy = "type data=folder too, or data=shards, or a set by name"
        return ConfigError(key, value, rule, remedy)
    first = key.partition(".")[0]
    place = f"conf/{first}/" if (home / first).is_dir() else "conf/pretrain.yaml"
    return ConfigError(key, value, f"is not a setting{near}", f"the settings are in {place}")


def _keys(cfg: DictConfig) -> Iterator[str]:
    """Dotted names of all values and nodes."""

    def walk(node: Any, prefix: str) -> Iterator[str]:
        for key, value in node.items():
            yield f"{prefix}{key}"
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")

    yield from walk(OmegaConf.to_container(cfg, resolve=False), "")
