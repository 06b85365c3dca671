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

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        """For pickle, which brings the error from another process."""
        return type(self), (self.key, self.value, self.rule, self.remedy)


class MissingFile(ConfigError, OSError):
    """A file that is needed is not there. Also an ``OSError``, as transformers raises it."""


class OutOfRange(ConfigError, IndexError):
    """A ``ConfigError`` for an index that is not in a table, where torch raises ``IndexError``."""


def refuse_address(key: str, value: object) -> None:
    """Refuse an address (``s3://…``) where only a folder of this machine will do: its text would
    become the name of a folder.

    Raises:
        ConfigError: if ``value`` is an address.
    """
    if "://" in str(value):
        rule = "is an address, and this can only be a folder of this machine"
        remedy = "give such a folder, and copy it there afterwards"
        raise ConfigError(key, value, rule, remedy)


class DataError(ConfigError):
    """A ``ConfigError`` of another process that reads data, of which only the text is known.

    A DataLoader raises the exception of a worker again with one argument: the traceback, the name
    of the exception and its message.
    """

    def __init__(self, text: str) -> None:
        Exception.__init__(self, text.strip().rpartition("DataError: ")[2])

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (str(self),)


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
