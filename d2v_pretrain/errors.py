"""One ConfigError: key, value, rule, remedy, without secrets; nearest(): what a misspelt name was
meant to be."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from d2v_pretrain.redaction import redact


class ConfigError(ValueError):
    """A mistake of the user's, told in one sentence with a remedy.

    Args:
        key: the configuration key or file at fault, as the user types it (``masking.prob``,
            ``data.root``).
        value: the value that was given.
        rule: what must hold, as a clause (``"must be at most the depth, 4"``).
        remedy: what to type instead, as an imperative clause; may be empty.
    """

    def __init__(self, key: str, value: object, rule: str, remedy: str = "") -> None:
        self.key, self.value, self.rule, self.remedy = key, value, rule, remedy
        text = f"{key}={value!s} {rule}" + (f"; {remedy}" if remedy else "") + "."
        super().__init__(redact(text))


class MissingFile(ConfigError, OSError):
    """A file that is needed is not there. Also an ``OSError``, as transformers raises it."""


class OutOfRange(ConfigError, IndexError):
    """A ``ConfigError`` for an index that is not in a table, where torch raises ``IndexError``."""


def nearest(name: str, known: Iterable[str], most: int = 2) -> str:
    """The most similar right names, as `` (did you mean a or b?)``; empty if no name is similar.

    Args:
        name: as it was typed.
        known: the right names. A dotted one (``masking.prob``) is also found by its last part.
        most: largest number of suggestions.
    """
    known = list(dict.fromkeys(known))
    near = get_close_matches(name, known, most, 0.7)
    if not near:
        last = {key: key.rpartition(".")[2] for key in known}
        alike = get_close_matches(name.rpartition(".")[2], last.values(), most, 0.75)
        near = [key for key in known if last[key] in alike][: most + 1]
    return f" (did you mean {' or '.join(near)}?)" if near else ""
