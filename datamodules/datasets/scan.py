"""A folder of the user's files: what is usable in it, what is skipped and why, and when that is too
much."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from d2v_pretrain.errors import ConfigError

Info = TypeVar("Info")
_PART = 100  # files a thread looks into at a time
_SHOWN = 5  # files named in an error; all are in the list of the run


class Unusable(Exception):
    """A file that cannot be used; the message is the reason, for the list of skipped files."""


class Skipped:
    """The list of skipped files: JSON lines ``{"file", "reason", "at": "start" | "training"}``.

    Args:
        path: where it is kept (the run folder's ``skipped.jsonl``), or None to keep none.
    """

    def __init__(self, path: str | None) -> None:
        self.path = Path(path) if path else None
        self.known: set[str] = set()

    def start(self, reasons: dict[str, str]) -> None:
        """Write what the scan found, and keep what an earlier part of the run met in training."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        old = self.path.read_text("utf-8").splitlines() if self.path.exists() else []
        met = [(line, json.loads(line)) for line in old]
        kept = [line for line, row in met if row["at"] == "training" and row["file"] not in reasons]
        self.known = {json.loads(line)["file"] for line in kept}
        lines = [
            json.dumps({"file": file, "reason": reason, "at": "start"})
            for file, reason in reasons.items()
        ]
        temporary = self.path.with_name(
            f"{self.path.name}.{os.getpid()}"
        )  # every rank writes the same, none half
        temporary.write_text("".join(line + "\n" for line in lines + kept), "utf-8")
        os.replace(temporary, self.path)

    def add(self, file: str, reason: str) -> None:
        """Note a file that failed in training, once, whichever of the run's processes meets it."""
        if file in self.known:
            return
        self.known.add(file)
        if self.path is None:
            print(f"skipped {file}: {reason}", file=sys.stderr)
            return
        with self.path.open("a+", encoding="utf-8") as lines:
            with suppress(OSError):  # a disk without locks: then a file may be listed twice
                fcntl.flock(lines, fcntl.LOCK_EX)
            lines.seek(0)
            if all(json.loads(line)["file"] != file for line in lines):
                print(f"skipped {file}: {reason}", file=sys.stderr)
                lines.write(json.dumps({"file": file, "reason": reason, "at": "training"}) + "\n")


def scan(
    root: str,
    endings: tuple[str, ...],
    check: Callable[[str], Info],
    skipped: Skipped,
    max_bad_share: float,
    ignore: Iterable[str] = (),
    files: list[str] | None = None,
) -> dict[str, Info]:
    """Look into every file below a folder (or at one file) and return what ``check`` says of the
    usable ones, sorted.

    Args:
        root: the folder, or a single file.
        endings: of the files to look into, in lower case with the dot; others are listed, and do
            not count as bad.
        check: file -> what to know of it; raises ``Unusable``. Called from several threads.
        skipped: the list to write.
        max_bad_share: largest share of files with these endings that may be unusable.
        ignore: files that are there for another reason (labels).
        files: those to look into, instead of what the root holds.

    Raises:
        ConfigError: if there is no such folder, nothing usable, or too much unusable.
    """
    closed: dict[str, str] = {}
    files = (
        _files(root, {os.path.realpath(file) for file in ignore}, closed)
        if files is None
        else sorted(files)
    )
    wanted = [file for file in files if file.lower().endswith(endings)]
    others = [file for file in files if not file.lower().endswith(endings)]
    looked_for = ", ".join(endings)
    found, bad = _check_all(wanted, check)
    bad |= closed
    skipped.start(
        bad | dict.fromkeys(others, f"not looked at: its name does not end in {looked_for}")
    )
    if not found:
        kinds = Counter(os.path.splitext(file)[1] or os.path.basename(file) for file in files)
        there = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(_SHOWN))
        rule = f"has no usable file: looked for {looked_for} in it and below; it holds {there or 'no file at all'}"
        raise ConfigError(
            "data.root", root, rule + _first(bad), "give another folder, or another modality"
        )
    if len(bad) > max_bad_share * len(wanted):
        rule = f"has {len(bad)} unusable of {len(wanted)} files, more than max_bad_share={max_bad_share:g} allows"
        raise ConfigError(
            "data.root",
            root,
            rule + _first(bad),
            "mend or remove them, or raise data.max_bad_share",
        )
    if bad and skipped.path:
        print(
            f"{len(bad):,} of {len(wanted):,} files cannot be used: {skipped.path} says why",
            file=sys.stderr,
        )
    return found


def _files(root: str, ignore: set[str], closed: dict[str, str]) -> list[str]:
    """Files below a folder, sorted, without hidden ones, or the one file (strings: ``Path`` takes
    ten times longer).

    ``closed`` gets the folders that cannot be opened.
    """

    def note(error: OSError) -> None:
        closed[error.filename] = f"cannot be opened ({error.strerror})"

    if os.path.isfile(root):
        return [root]
    if not os.path.isdir(root):
        raise ConfigError(
            "data.root", root, "is not a folder", "give the folder that holds the data"
        )
    files: list[str] = []
    above = {
        root: {os.path.realpath(root)}
    }  # a link to a folder above itself would lead around for ever
    for folder, below, names in os.walk(root, onerror=note, followlinks=True):
        seen = above.pop(folder)
        real = {name: os.path.realpath(os.path.join(folder, name)) for name in below}
        below[:] = [
            name
            for name in below
            if real[name] not in seen and not name.startswith((".", "__MACOSX"))
        ]
        above |= {os.path.join(folder, name): seen | {real[name]} for name in below}
        files += [os.path.join(folder, name) for name in names if not name.startswith(".")]
    return sorted(file for file in files if not ignore or os.path.realpath(file) not in ignore)


def _check_all(
    files: list[str], check: Callable[[str], Info]
) -> tuple[dict[str, Info], dict[str, str]]:
    """What ``check`` says of each file, and the reason where it is unusable; tells how far it is
    every few seconds."""

    def safe(file: str) -> Info | Unusable:
        try:
            if os.path.getsize(file) == 0:
                return Unusable("empty")
            return (
                check(file)
                if os.access(file, os.R_OK)
                else Unusable("may not be read (no permission)")
            )
        except Unusable as error:
            return error
        except OSError as error:
            return Unusable(f"cannot be read ({error.strerror or error})")
        except UnicodeEncodeError:  # soundfile
            return Unusable("its name is not UTF-8")

    parts = [files[i : i + _PART] for i in range(0, len(files), _PART)]
    said: dict[str, Info | Unusable] = {}
    told = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        for part, answers in zip(
            parts, pool.map(lambda part: list(map(safe, part)), parts), strict=True
        ):
            said.update(zip(part, answers, strict=True))
            if time.monotonic() - told > 2:
                told = time.monotonic()
                print(f"looking into files: {len(said):,} of {len(files):,}", file=sys.stderr)
    bad = {file: str(answer) for file, answer in said.items() if isinstance(answer, Unusable)}
    return {file: answer for file, answer in said.items() if not isinstance(answer, Unusable)}, bad


def _first(bad: dict[str, str]) -> str:
    if not bad:
        return ""
    named = "; ".join(f"{file} ({reason})" for file, reason in list(bad.items())[:_SHOWN])
    return f" (skipped {len(bad)}: {named}{'; …' if len(bad) > _SHOWN else ''})"
