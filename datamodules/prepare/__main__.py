"""The command ``python -m datamodules.prepare audio|vision|text|index|verify key=value …``."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from d2v_pretrain.config import options
from d2v_pretrain.errors import ConfigError, nearest
from datamodules.prepare import audio, settings, text, verify, vision
from datamodules.prepare.output import Finished, Output
from datamodules.prepare.packing import Plan, pack

_PLANS: dict[str, Callable[[Any, Output], Plan]] = {
    "audio": audio.plan,
    "vision": vision.plan,
    "text": text.plan,
}
_CHECKS: dict[str, Callable[[Any], int]] = {"index": verify.index, "verify": verify.verify}
# Messages of the datasets name settings as a run's configuration does (`data.root`). This command
# has other names for them (`input`), so the names in messages are translated.
_NAMES = {r"\bdata\.root\b": "input", r"\b(transform|data)\.(?=\w)": ""}
_AGAIN = "the same command goes on where this one stopped"


def main(words: Sequence[str] | None = None) -> int:
    """Run a command, or print the pages of all of them.

    Returns:
        The exit code: 0, 1 if ``verify`` found faults, 2 for wrong use, 130 after Ctrl-C.
    """
    words = sys.argv[1:] if words is None else list(words)
    if not words or {"-h", "--help", "help"} & set(words):
        asked = [word for word in words if word in settings.COMMANDS] or list(settings.COMMANDS)
        print("\n\n\n".join(options.page(settings.COMMANDS[command]) for command in asked))
        return 0 if words else 2
    try:
        return _run(words[0], words[1:])
    except ConfigError as error:
        return _fail(_translated(str(error)), 2)
    except KeyboardInterrupt:
        return _fail(f"stopped; {_AGAIN}", 130)
    except BrokenProcessPool:
        rule = "a process was killed, perhaps for lack of memory"
        return _fail(f"{rule}; {_AGAIN}: give it fewer processes=", 2)
    except OSError as error:
        rule = f"{error.filename or 'output'}: {error.strerror or error}"
        return _fail(f"{rule}; once that is mended, {_AGAIN}", 2)


def _run(command: str, words: Sequence[str]) -> int:
    if command not in settings.COMMANDS:
        rule = f"is not a command{nearest(command, settings.COMMANDS)}"
        raise ConfigError("command", command, rule, f"type one of {', '.join(settings.COMMANDS)}")
    given = options.read(settings.COMMANDS[command], words)
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
    shards = f"{len(manifest['shards']):,} shards, {size}{hours}, {manifest['bytes'] / 1e6:,.1f} MB"
    print(f"{output.folder}: {shards}")
    if skipped := manifest["skipped"]:
        print(f"{skipped:,} files were left out: {output.folder / 'skipped.jsonl'} says why")
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
