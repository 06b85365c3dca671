"""The settings of each command, with defaults and units, and the parsing of ``key=value`` words."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from d2v_pretrain.errors import ConfigError

Kind = TypeVar("Kind")


def key(meaning: str, default: Any = MISSING, least: float | None = None) -> Any:
    """A setting: what it means and in which unit, its default (none: it must be given) and its
    smallest value."""
    return field(default=default, metadata={"meaning": meaning, "least": least})


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every command needs."""

    input: str = key("folder or file to read")
    processes: int = key(
        "processes at work at once; the output does not depend on it", os.cpu_count() or 1, 1
    )


@dataclass(frozen=True, kw_only=True)
class Build(Work):
    """What every command that writes shards needs."""

    output: str = key("folder of the shards, new or of the same command")
    order: Literal["shuffle", "sorted"] = key(
        "of the samples over the shards: shuffle or sorted (by name)", "shuffle"
    )
    seed: int = key("of the shuffle", 0)
    shard_mb: float = key("size of a shard, about, in MB", 256.0, 1e-6)
    shard_samples: int | None = key("samples of a shard, instead of shard_mb", None, 1)
    max_bad_share: float = key("stop if more of the input than this cannot be used", 0.1, 0)
    licence: str | None = key(
        "of the data, for the manifest; null takes it from a LICENSE or README in input", None
    )


@dataclass(frozen=True, kw_only=True)
class Audio(Build):
    """wav, flac, ogg, mp3 files below a folder, or those of a fairseq manifest (input=….tsv)."""

    encode: Literal["keep", "flac"] = key(
        "keep the files' bytes, or make them flac: 16 kHz, mono, 16 bits", "keep"
    )
    min_seconds: float = key("shorter files are skipped and listed", 0.2, 0)
    max_seconds: float = key(
        "longer files are cut into equal parts, which are encoded as flac", 35.0, 0.001
    )
    check: Literal["decode", "header"] = key(
        "what of each file is looked into before its bytes are kept", "decode"
    )


@dataclass(frozen=True, kw_only=True)
class Vision(Build):
    """jpg, png, webp files below a folder; class sub-folders give labels."""

    short_side: int | None = key(
        "pixels; larger images become smaller and JPEG; null keeps all bytes", None, 1
    )
    quality: int = key("of that JPEG, 1 to 95", 90, 1)
    min_side: int = key("pixels; images with a shorter side are skipped and listed", 8, 1)
    check: Literal["decode", "header"] = key(
        "what of each file is looked into before its bytes are kept", "decode"
    )


@dataclass(frozen=True, kw_only=True)
class Text(Build):
    """UTF-8 .txt files below a folder, or one file, a piece of text a line; or fairseq's binarised
    input=….bin."""

    tokenizer: str | None = key(
        "tokenizer.json, or folder with it or vocabulary and merges; null trains one", None
    )
    vocab_size: int = key("ids of the tokenizer that is trained", 50_265, 261)
    train_mb: float = key("MB of text, taken evenly, that it is trained on", 1000.0, 1e-6)
    block: int = key("tokens of a sample, with its <s>", 512, 2)
    break_mode: Literal["none", "complete", "complete_doc"] = key(
        "none: cut anywhere (data2vec 2, all blocks full); complete: whole lines; complete_doc: and one document "
        "(data2vec 1), which ends at a blank line or with its file",
        "none",
    )
    blank_lines: Literal["keep", "drop"] = key(
        "keep: a lone </s>, as in RoBERTa's data; drop", "keep"
    )
    part_mb: float = key("MB of text tokenised at a time", 16.0, 1e-6)


@dataclass(frozen=True, kw_only=True)
class Index(Work):
    """Write the index of tar files that have none, or a stale one (input= a folder or a tar
    file)."""


@dataclass(frozen=True, kw_only=True)
class Verify(Work):
    """Check every checksum, index and member of a folder of shards; exit code 1 if anything is
    wrong."""


COMMANDS: dict[str, type[Work]] = {
    "audio": Audio,
    "vision": Vision,
    "text": Text,
    "index": Index,
    "verify": Verify,
}


def parse(kind: type[Kind], words: Sequence[str]) -> Kind:
    """The settings that ``key=value`` words give.

    Raises:
        ConfigError: a word that is none, an unknown key (with the nearest), a value of another
            type, a missing key.
    """
    known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if name not in known or not sign:
            raise _stranger(name, value if sign else "", list(known))
        values[name] = _convert(hints[name], known[name], value)
    for name, one in known.items():
        if one.default is MISSING and name not in values:
            raise ConfigError(
                name, "", f"must be given: {one.metadata['meaning']}", f"type {name}=…"
            )
    return kind(**values)


def _stranger(name: str, value: str, known: list[str]) -> ConfigError:
    if name in known:
        return ConfigError(name, value, "has no value", f"type {name}=…")
    if os.sep in name:
        return ConfigError(
            "command", name, "is not of the form key=value", f"type input={name}, or output={name}"
        )
    near = difflib.get_close_matches(name, known, 2, 0.6)
    meant = f" (did you mean {' or '.join(near)}?)" if near else ""
    return ConfigError(
        name, value, f"is not a setting{meant}", f"the settings are {', '.join(known)}"
    )


def _convert(hint: Any, one: Field[Any], text: str) -> Any:
    """A word as the type of its setting: a choice, or int, float or str, or null where it may
    be."""
    options = get_args(hint)
    if options and NoneType not in options:
        if text not in options:
            raise ConfigError(one.name, text, f"must be one of {', '.join(options)}")
        return text
    if options and text in ("null", ""):
        return None
    kind = options[0] if options else hint
    try:
        value = kind(text)
    except ValueError:
        raise ConfigError(
            one.name, text, f"must be {'a whole number' if kind is int else 'a number'}"
        ) from None
    least = one.metadata["least"]
    if text == "" or (least is not None and not value >= least):
        raise ConfigError(
            one.name, text, "must not be empty" if text == "" else f"must be at least {least:g}"
        )
    return value


def usage(command: str) -> str:
    """Every key of a command with its default and meaning."""
    kind = COMMANDS[command]
    rows = [
        (one.name, "…" if one.default is MISSING else _shown(one.default), one.metadata["meaning"])
        for one in sorted(fields(kind), key=lambda one: one.default is not MISSING)
    ]
    lines = [f"  {name + '=' + default:<22} {meaning}" for name, default, meaning in rows]
    return "\n".join(
        [f"python -m datamodules.prepare {command} key=value …", f"  {kind.__doc__}", "", *lines]
    )


def _shown(default: Any) -> str:
    return (
        "null"
        if default is None
        else f"{default:g}"
        if isinstance(default, float)
        else str(default)
    )
