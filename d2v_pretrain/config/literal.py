"""literal(): words with characters that mean something to Hydra, where a path is meant."""

from __future__ import annotations

import os
import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

# Hydra reads these as they are, outside of quotes.
_PLAIN = re.compile(r"[\w.:/%+@*?|-]*", re.ASCII)
_KEY = re.compile(r"[+~]{0,2}[\w.@/-]+=")


def literal(word: str) -> str:
    """A word ``key=value`` as Hydra takes it.

    The value is put in quotes if it is the path of a file or folder that exists, or if Hydra could
    not read it otherwise, as ``runs/a/checkpoints/step=20.ckpt``, ``a(1)`` or a name with umlauts.
    Other words stay as they are: lists, ``${…}``, sweeps with commas, values in quotes.
    """
    key = _KEY.match(word)
    value = word[key.end() :] if key else ""
    if key is None or _PLAIN.fullmatch(value):
        return word
    path = os.path.expanduser(value)
    if os.path.exists(path):
        return key[0] + quoted(path)
    if _is_readable(word) or value[0] in "[{'\"":
        return word
    return key[0] + quoted(path)


def quoted(text: str) -> str:
    """Text in quotes, in which Hydra finds nothing but the text."""
    # Inside quotes a backslash is an escape only in front of a quote, and OmegaConf reads ${…}
    # unless a backslash is in front of it.
    doubled = re.sub(r"(\\+)(?='|$)", r"\1\1", text)
    return "'" + doubled.replace("'", "\\'").replace("${", "\\${") + "'"


def for_shell(key: str, text: str) -> str:
    """What to type in a shell so that ``key`` is exactly this text."""
    return '"' + re.sub(r'([\\$"`])', r"\\\1", f"{key}={quoted(text)}") + '"'


def _is_readable(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True
