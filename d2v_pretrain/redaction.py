"""Redaction: passwords and tokens are replaced by marks in all that is stored and printed. They are
put back where a connection is opened, and nowhere else."""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any

MARK = "HIDDEN_SECRET_"
# The secrets themselves, in the order of their marks. An environment variable is inherited by the
# ranks and loader workers that this process starts.
_KEPT = "D2V_PRETRAIN_SECRETS"
_SHORT = 6  # characters; a shorter secret is not searched for in other texts

_NAME = (
    r"(?:password|passwd|pwd|secret|token|(?:api|access|secret|account|wandb)[_-]?key(?:[_-]?id)?"
    r"|authorization|credentials?|signature)"
)
_KEY = re.compile(rf"(?i)(?:^|.*[^A-Za-z])(?:{_NAME}|sig|auth|pass)$|.*[a-z](?:Token|Key|Secret)$")
_WORD = re.compile(r"[+~]*[\w.@/-]+")
# An address ends before the next one of a list, and before a quote or a bracket.
_ADDRESS = re.compile(r"([A-Za-z][\w+.-]*)://((?:(?!,\s*[A-Za-z][\w+.-]*://)[^\s'\"<>])+)")
_QUERY = re.compile(r"([?&;#])([^=&;#?]+)=([^&;#\])}]+)")
_HARMLESS = {"download", "dl", "raw", "alt", "version", "versionid", "generation", "format"}
# Tokens of a text are no secrets: mask_token, pad_token, …
_SPECIAL = r"(?![\w.-]*(?:mask|pad|bos|eos|cls|sep|unk)_token=)"
_SETTING = re.compile(rf"(?i)((?<![\w.-]){_SPECIAL}[\w.-]*{_NAME}=)([^\s,;&'\"\])}}]+)")
# In commands (pipe:curl …): options and headers.
_OPTIONS = (
    re.compile(r"()((?<=\s-u\s)\S+:\S+)"),
    re.compile(r"(--user[ =])(\S+)"),
    re.compile(rf"(?i)(--[\w-]*{_NAME}[ =])([^\s'\"]+)"),
    re.compile(rf"(?i)([\w-]*{_NAME}:\s*(?:bearer |basic |token )?)([^\s'\"]+)"),
)


def conceal(text: str) -> str:
    """A text with marks in place of its secrets: user and password of addresses, values of their
    queries, values of settings and options with such a name. ``reveal`` gives the same text
    again."""
    text = _ADDRESS.sub(lambda found: f"{found[1]}://{_address(found[1], found[2])}", text)
    for pattern in (_SETTING, *(_OPTIONS if "pipe:" in text else ())):
        text = pattern.sub(lambda found: found[1] + _hidden(found[2]), text)
    return text


def redact(text: str) -> str:
    """A text for printing: without its secrets, and without those that were concealed before, which
    a library may have put into its message in another form."""
    for secret in _kept():
        for part in (secret, secret.rpartition(":")[2]):
            if len(part) >= _SHORT:
                text = text.replace(part, _mark(secret))
    return conceal(text)


def conceal_word(word: str) -> str:
    """A word ``key=value`` of a command line with marks in place of its secrets."""
    key, _, value = word.partition("=")
    if value and _WORD.fullmatch(key) and _KEY.fullmatch(key):
        quote = value[0] if value[0] in "'\"" and value[-1] == value[0] else ""
        return f"{key}={quote}{_hidden(value.strip(quote) if quote else value)}{quote}"
    return conceal(word)


def concealed(value: Any) -> Any:
    """Nested mappings and lists with marks in place of the secrets in their strings."""
    if isinstance(value, Mapping):
        return {
            key: _hidden(item)
            if isinstance(item, str) and item and _KEY.fullmatch(str(key))
            else concealed(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [concealed(item) for item in value]
    return conceal(value) if isinstance(value, str) else value


def reveal(text: str) -> str:
    """The text with its secrets, to open a connection. Marks of secrets that this process was not
    given stay."""
    kept = _kept()

    def secret(mark: re.Match[str]) -> str:
        number = int(mark[1])
        return kept[number - 1] if number <= len(kept) else mark[0]

    return re.sub(rf"{MARK}(\d+)_", secret, text) if MARK in text else text


def revealed(value: Any) -> Any:
    """Nested mappings and lists with the secrets in their strings; see ``reveal``."""
    if isinstance(value, Mapping):
        return {key: revealed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [revealed(item) for item in value]
    return reveal(value) if isinstance(value, str) else value


def conceal_tracebacks() -> None:
    """Let Python print errors that nobody catches without secrets."""

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        lines = traceback.format_exception(kind, error, trace)
        print(redact("".join(lines)), end="", file=sys.stderr)

    sys.excepthook = show


def _address(scheme: str, rest: str) -> str:
    """An address behind ``scheme://``."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    port = authority.rpartition("@")[2].partition(":")[2]
    # A password with a slash in it: what looks like a port is no number.
    broken = "@" not in authority and port and not re.match(r"[\d\]{}.,*]", port)
    user, at, _ = (rest if broken and "@" in rest else authority).rpartition("@")
    web = scheme.lower() in ("http", "https", "ftp", "ftps")
    if at and user and (web or ":" in user):
        rest = _hidden(user) + rest[len(user) :]
    if web and "=" not in (query := rest.partition("?")[2]) and query:
        return rest.removesuffix(query) + _hidden(query)
    return _QUERY.sub(_parameter, rest)


def _parameter(found: re.Match[str]) -> str:
    if found[2].lower() in _HARMLESS:
        return found[0]
    return f"{found[1]}{found[2]}={_hidden(found[3])}"


def _hidden(secret: str) -> str:
    """The mark of a secret, which is kept."""
    if MARK in secret:
        return secret
    kept = _kept()
    if secret not in kept:
        os.environ[_KEPT] = json.dumps([*kept, secret])
    return _mark(secret)


def _mark(secret: str) -> str:
    return f"{MARK}{_kept().index(secret) + 1}_"


def _kept() -> list[str]:
    return json.loads(os.environ.get(_KEPT, "[]"))
