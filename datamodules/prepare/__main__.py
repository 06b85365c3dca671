"""The command: ``python -m datamodules.prepare audio|vision|text|index|verify key=value …``; errors
in one sentence."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from d2v_pretrain.errors import ConfigError
from datamodules.prepare import audio, settings, text, verify, vision
from datamodules.prepare.output import Finished, Output
from datamodules.prepare.packing import Plan, pack

_PLANS: dict[str, Callable[[Any, Output], Plan]] = {
    "audio": audio.plan,
    "vision": vision.plan,
    "text": text.plan,
}
_CHECKS: dict[str, Callable[[Any], int]] = {"index": verify.index, "verify": verify.verify}
# The datasets name their settings as a run's configuration does.
_NAMES = {r"\bdata\.root\b": "input", r"\b(transform|data)\.(?=\w)": ""}
_AGAIN = "the same command goes on where this one stopped"


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 if ``verify`` found faults, 2 wrong use, 130
    Ctrl-C."""
    words = sys.argv[1:] if words is None else list(words)
    if not words or {"-h", "--help", "help"} & set(words):
        asked = [word for word in words if word in settings.COMMANDS] or list(settings.COMMANDS)
        print("\n\n".join(map(settings.usage, asked)))
        return 0 if words else 2
    try:
        return _run(words[0], words[1:])
    except ConfigError as error:
        return _fail(_translated(str(error)), 2)
    except KeyboardInterrupt:
        return _fail(f"stopped; {_AGAIN}", 130)
    except BrokenProcessPool:
        return _fail(
            f"a process was killed, for lack of memory perhaps; {_AGAIN}: give it fewer processes=",
            2,
        )
    except OSError as error:
        return _fail(
            f"{error.filename or 'output'}: {error.strerror or error}; once that is mended, {_AGAIN}",
            2,
        )


def _run(command: str, words: Sequence[str]) -> int:
    if command not in settings.COMMANDS:
        near = difflib.get_close_matches(command, settings.COMMANDS, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(
            "command", command, f"is none{meant}", f"type one of {', '.join(settings.COMMANDS)}"
        )
    given = settings.parse(settings.COMMANDS[command], words)
    if command in _CHECKS:
        return _CHECKS[command](given)
    assert isinstance(given, settings.Build)
    output = Output(given, command)
    try:
        with output.opened():
            _report(pack(_PLANS[command](given, output), output), output)
    except Finished:
        print(f"{output.folder} is finished already; check it with: verify input={output.folder}")
    return 0


def _report(manifest: dict[str, Any], output: Output) -> None:
    size = f"{manifest['samples']:,} samples, {manifest['length']:,} {manifest['unit']}"
    hours = f" ({manifest['hours']:,.2f} h)" if manifest["hours"] else ""
    print(
        f"{output.folder}: {len(manifest['shards']):,} shards, {size}{hours}, {manifest['bytes'] / 1e6:,.1f} MB"
    )
    if manifest["skipped"]:
        print(
            f"{manifest['skipped']:,} files were left out: {output.folder / 'skipped.jsonl'} says why"
        )
    if manifest["licence"] is None:
        print("No licence was found; licence=… notes one in the manifest")


def _translated(message: str) -> str:
    for theirs, ours in _NAMES.items():
        message = re.sub(theirs, ours, message)
    return message


def _fail(message: str, code: int) -> int:
    print(verify.shown(message), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
