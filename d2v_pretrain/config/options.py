"""Options of a command: a dataclass declares them, ``read()`` takes their values from ``key=value``
words, ``page()`` prints their descriptions.

A field is ``name: Annotated[type, "what it means"] = default``. A number may have its smallest
value as a third argument, and a field without a default must be typed. The types are str, int,
float, bool, ``Literal[…]`` of strings, each of them ``| None`` (typed as ``null``), and ``Words``.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from d2v_pretrain.errors import ConfigError, nearest
from d2v_pretrain.redaction import conceal_tracebacks, redact

Kind = TypeVar("Kind")
# The annotation of a field ``data`` that collects the arguments ``data=…`` and ``data.key=…`` as
# strings. The command passes them to Hydra, which reads them.
Words = tuple[str, ...]
_IN_WORDS = {int: "a whole number", float: "a number", bool: "true or false"}
_WIDTH = 100  # of a usage page, in characters


def read(kind: type[Kind], words: Iterable[str]) -> Kind:
    """The options that words of the form ``key=value`` give; the last one counts if a key is typed
    twice.

    Raises:
        ConfigError: a word without ``=``, an unknown key (with the nearest one), a value of another
            type or too small, or a key is missing.
    """
    known = {field.name: field for field in _fields(kind)}
    hints = get_type_hints(kind, include_extras=True)
    groups = {name for name in known if get_args(hints[name])[0] == Words}
    values: dict[str, Any] = {}
    words = list(words)
    refuse_dashes(words)
    for word in words:
        name, equals, text = word.partition("=")
        if (group := name.partition(".")[0]) in groups and equals:
            values[group] = (*values.get(group, ()), word)
        elif name not in known:
            raise _unknown(known, word)
        elif not equals:
            raise ConfigError(name, "", "has no value", f"type {name}=…")
        else:
            values[name] = _value(name, text, *get_args(hints[name]))
    for name, field in known.items():
        if field.default is dataclasses.MISSING and name not in values:
            rule = f"must be given: {get_args(hints[name])[1]}"
            raise ConfigError(name, "", rule, f"type {name}=…")
    return kind(**values)


def refuse_dashes(words: Sequence[str], allowed: Iterable[str] = ()) -> None:
    """Refuse words with dashes in front, such as ``--steps``, because options have none.

    Args:
        words: as typed.
        allowed: words with dashes that are not refused.

    Raises:
        ConfigError: the first word with dashes, and how to type it instead.
    """
    for n, word in enumerate(words):
        name, equals, value = word.partition("=")
        if not name.startswith("--") or name in allowed:
            continue
        value = value if equals else next(iter(words[n + 1 : n + 2]), "")
        value = "" if value.startswith("-") or "=" in value else value
        key = name.lstrip("-").replace("-", "_")
        raise ConfigError(name, value, "is typed without dashes", f"type {key}={value or '…'}")


def split(words: Iterable[str], *keys: str) -> tuple[list[str], list[str]]:
    """The words ``key=…`` of these keys, and the other words."""
    ours: list[str] = []
    others: list[str] = []
    for word in words:
        (ours if word.partition("=")[0] in keys else others).append(word)
    return ours, others


def run(command: Callable[[list[str]], Any], kind: type) -> None:
    """Run a command with what was typed. Without words, or with ``-h``, it prints its usage page; a
    mistake of the user's is one line and exit code 2.

    Args:
        command: called with the words.
        kind: its options, for the page.
    """
    typed = sys.argv[1:]
    if not typed or {"-h", "--help"} & set(typed):
        print(page(kind))
        return
    conceal_tracebacks()
    # These import Hydra, which the page can do without.
    from d2v_pretrain.config.explain import MISTAKES, in_words

    try:
        command(typed)
    except MISTAKES as error:
        print(redact(f"error: {in_words(error)}"), file=sys.stderr)
        sys.exit(2)


def page(kind: type) -> str:
    """The usage page of a command: the docstring of its options, and a line for each option."""
    hints = get_type_hints(kind, include_extras=True)
    rows = []
    for field in sorted(_fields(kind), key=lambda field: field.default is not dataclasses.MISSING):
        hint, meaning = get_args(hints[field.name])[:2]
        if choices := _choices(hint):
            meaning += f" ({', '.join(choices)})"
        rows.append((f"{field.name}={_shown(field.default)}", meaning))
    text, _, examples = inspect.cleandoc(kind.__doc__ or "").partition("\nExamples:\n")
    examples = f"\n\nExamples:\n{examples}" if examples else ""
    return f"{text.rstrip()}\n\nOptions:\n{table(rows)}{examples}"


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Text in two columns; the second column is wrapped to the width of the page."""
    wide = min(24, max(len(key) for key, _ in rows)) + 2
    lines: list[str] = []
    for key, meaning in rows:
        first, *rest = textwrap.wrap(meaning, _WIDTH - wide - 2)
        if len(key) + 2 > wide:
            lines.append(f"  {key}")
            key = ""
        lines += [f"  {key:<{wide}}{first}", *(f"  {'':<{wide}}{line}" for line in rest)]
    return "\n".join(lines)


def _fields(kind: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(kind)


def _unknown(known: Mapping[str, dataclasses.Field[Any]], word: str) -> ConfigError:
    name, equals, text = word.partition("=")
    listed = f"the options are {', '.join(known)}"
    if equals:
        return ConfigError(name, text, f"is not an option{nearest(name, known)}", listed)
    needed = [key for key, field in known.items() if field.default is dataclasses.MISSING]
    meant = " or ".join(f"{key}={word}" for key in needed)
    remedy = f"type {meant}" if needed else listed
    return ConfigError("option", word, "is not of the form key=value", remedy)


def _choices(hint: Any) -> list[str]:
    """The words of a ``Literal``; [] of another type."""
    parts = [hint, *get_args(hint)]
    return [word for part in parts if get_origin(part) is Literal for word in get_args(part)]


def _value(name: str, text: str, hint: Any, meaning: str, least: float | None = None) -> Any:
    """The text typed for an option, converted to the type of the option."""
    parts = [hint] if get_origin(hint) is Literal else [*get_args(hint)] or [hint]
    if NoneType in parts and text in ("null", ""):
        return None
    if choices := _choices(hint):
        if text not in choices:
            raise ConfigError(name, text, f"must be one of {', '.join(choices)}")
        return text
    if text == "":
        raise ConfigError(name, text, "must not be empty")
    type_ = next(part for part in parts if part is not NoneType)
    try:
        value = {"true": True, "false": False}[text.lower()] if type_ is bool else type_(text)
    except (KeyError, ValueError):
        raise ConfigError(name, text, f"must be {_IN_WORDS[type_]}") from None
    if least is not None and not value >= least:
        raise ConfigError(name, text, f"must be at least {least:g}")
    return value


def _shown(default: Any) -> str:
    """A default value, written as a user would type it."""
    if default is dataclasses.MISSING or default == ():
        return "…"
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    return f"{default:g}" if isinstance(default, float) else str(default)
