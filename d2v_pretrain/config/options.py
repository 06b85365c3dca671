"""``python -m d2v_pretrain.<command> key=value …``: reading what was typed, and mistakes in one
sentence."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from d2v_pretrain.config.explain import in_words
from d2v_pretrain.errors import ConfigError

NEEDED = "???"


def split(typed: Sequence[str], group: str) -> tuple[list[str], list[str]]:
    """Words about ``group`` (``data=…``, ``data.root=…``), which go to the configuration, and the
    others."""
    ours = [word for word in typed if word.partition("=")[0].partition(".")[0] == group]
    return ours, [word for word in typed if word not in ours]


def options(typed: Sequence[str], known: Mapping[str, str | None]) -> dict[str, str | None]:
    """The options of a command.

    Args:
        typed: ``key=value`` each.
        known: defaults by key; ``NEEDED`` for an option that must be typed, None for one that may
            be left out.

    Raises:
        ConfigError: an unknown key, with the nearest one; a word without ``=``; a needed one is
            missing.
    """
    chosen: dict[str, str | None] = dict(known)
    for word in typed:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(
                word, "", "is not of the form key=value", f"the keys are {', '.join(known)}"
            )
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ConfigError(
                key, value, f"is not an option{hint}", f"the options are {', '.join(known)}"
            )
        chosen[key] = None if value == "null" else value
    for key in known:
        if chosen[key] == NEEDED:
            raise ConfigError(key, "", "is needed", f"type {key}=…")
    return chosen


def one_of(key: str, value: str | None, choices: Sequence[str]) -> str:
    """``value``, if it is one of ``choices``.

    Raises:
        ConfigError: it is not.
    """
    if value is None or value not in choices:
        raise ConfigError(key, value, "is not there", f"choose one of {', '.join(choices)}")
    return value


def whole_number(key: str, value: str | None) -> int | None:
    """``value`` as a number, None as None.

    Raises:
        ConfigError: it is no whole number of at least 0.
    """
    if value is None or value.isdecimal():
        return None if value is None else int(value)
    raise ConfigError(key, value, "must be a whole number")


def run(command: Callable[[Sequence[str]], Any], usage: str | None) -> None:
    """Run a command with what was typed; a mistake of the user's is one line and exit code 2.

    Args:
        usage: what ``--help`` or nothing at all prints.
    """
    typed = sys.argv[1:]
    if not typed or set(typed) & {"-h", "--help"}:
        print((usage or "").strip())
        return
    try:
        command(typed)
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {in_words(error)}", file=sys.stderr)
        sys.exit(2)
