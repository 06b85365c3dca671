"""scan(): which files of a user's folder are usable; Skipped: the list of those that are not."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from d2v_pretrain.atomic_files import append, atomic, json_lines, unwritable
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.redaction import redact
from datamodules.datasets.unusable import Unusable, cause, reading

Info = TypeVar("Info")
_PART = 100  # files that a thread checks at a time
_SHOWN = 5  # files named in an error; ``skipped.jsonl`` names all of them
_TRIED = 100  # files that are looked for, to tell whether all are gone


class ListUnwritable(ConfigError):
    """The list of skipped files cannot be written.

    The only argument is the message, because a DataLoader raises the exception of a worker again
    with one argument: the traceback and the message as one text.
    """

    def __init__(self, text: str) -> None:
        Exception.__init__(self, text.strip().rpartition("ListUnwritable: ")[2])


class Skipped:
    """The list of skipped files: JSON lines ``{"file", "reason", "at": "start" | "training"}``.

    Args:
        path: file of the list (``skipped.jsonl`` in the run's folder); None writes no list.
    """

    def __init__(self, path: str | None) -> None:
        self.path = Path(path) if path else None
        self.known: set[str] = set()
        self.root = ""
        self.files: Sequence[str] = ()

    def start(self, reasons: dict[str, str]) -> None:
        """Write the files that a scan found unusable. Lines that training has added before a
        restart of the run are kept."""
        if self.path is None:
            return
        old, broken, cut = json_lines(self.path)
        if broken or cut:
            number = len(broken) + bool(cut)
            print(f"{self.path} had {number} damaged lines, left out now", file=sys.stderr)
        met = [row for row in old if row.get("at") == "training" and "file" in row]
        kept = [row for row in met if row["file"] not in reasons]
        self.known = {row["file"] for row in kept}
        rows = [
            {"file": redact(file), "reason": redact(why), "at": "start"}
            for file, why in reasons.items()
        ]
        with atomic(self.path) as temporary:  # all ranks write the same content
            lines = (json.dumps(row) + "\n" for row in rows + kept)
            temporary.write_text("".join(lines), "utf-8")

    def watch(self, root: str, files: Sequence[str]) -> None:
        """Remember which files there are, for ``check_there``.

        Args:
            root: ``data.root``, for the message.
            files: paths of usable files.
        """
        self.root, self.files = root, files

    def check_there(self, file: str) -> None:
        """Tell one bad file from a folder that is gone, after ``file`` could not be read.

        Raises:
            ConfigError: if the folder of ``file`` is gone, or all of the watched files are.
        """
        if not self.files or os.path.exists(file):
            return
        gone = os.path.dirname(file)
        if os.path.isdir(gone):
            some = self.files[:: -(-len(self.files) // _TRIED)]
            if any(map(os.path.exists, some)):
                return
            rule = f"cannot be read any more: none of its {len(self.files):,} files is there"
        else:
            while not os.path.isdir(above := os.path.dirname(gone) or "."):
                gone = above
            rule = f"cannot be read any more: the folder {gone} is not there"
        raise ConfigError("data.root", self.root, rule, "bring it back and type the same command")

    def examples(self) -> str:
        """The newest files that were added in training, with reasons, and the path of the list; ""
        if there are none."""
        if self.path is None or not self.path.exists():
            return ""
        rows = map(json.loads, self.path.read_text("utf-8").splitlines())
        met = [f"{row['file']} ({row['reason']})" for row in rows if row["at"] == "training"]
        return f": {'; '.join(met[-_SHOWN:])}; {self.path} lists all" if met else ""

    def add(self, file: str, reason: str, within: str | None = None) -> None:
        """Add a file that could not be read in training, unless a process of the run has added it.

        Args:
            file: its name in the list.
            reason: for the list.
            within: the file on the disk that holds it; by default ``file`` itself.

        Raises:
            ConfigError: see ``check_there``.
        """
        self.check_there(within or file)
        file, reason = redact(file), redact(reason)
        if file in self.known:
            return
        self.known.add(file)
        if self.path is None:
            print(f"skipped {file}: {reason}", file=sys.stderr)
            return
        line = json.dumps({"file": file, "reason": reason, "at": "training"}) + "\n"
        try:
            with self.path.open("a") as lines:
                with suppress(OSError):  # on a disk without locks a file may be listed twice
                    fcntl.flock(lines, fcntl.LOCK_EX)
                if all(row.get("file") != file for row in json_lines(self.path)[0]):
                    print(f"skipped {file}: {reason}", file=sys.stderr)
                    append(self.path, line)
        except OSError as error:
            raise ListUnwritable(str(unwritable(error, self.path))) from error


def scan(
    root: str,
    endings: tuple[str, ...],
    check: Callable[[str], Info],
    skipped: Skipped,
    max_bad_share: float,
    ignore: Iterable[str] = (),
    files: list[str] | None = None,
) -> dict[str, Info]:
    """Check every file below a folder (or one file), and return the usable ones, sorted by name.

    Args:
        root: the folder, or a single file.
        endings: of the files to check, in lower case with the dot; others are listed as skipped,
            and do not count as bad.
        check: function of a file whose result the caller needs; raises ``Unusable``. It is called
            from several threads.
        skipped: the list in which unusable files are written down.
        max_bad_share: largest share of files with these endings that may be unusable.
        ignore: files that are no data, such as the table of labels.
        files: the files to check, instead of all that the root holds.

    Returns:
        File -> what ``check`` returned.

    Raises:
        ConfigError: if there is no such folder, no usable file, or too many unusable ones.
    """
    closed: dict[str, str] = {}
    if files is None:
        files = _files(root, {os.path.realpath(file) for file in ignore}, closed)
    files = sorted(files)
    wanted = [file for file in files if file.lower().endswith(endings)]
    others = [file for file in files if not file.lower().endswith(endings)]
    looked_for = ", ".join(endings)
    found, bad = _check_all(wanted, check)
    bad |= closed
    reason = f"not looked at: its name does not end in {looked_for}"
    skipped.start(bad | dict.fromkeys(others, reason))
    named = "; ".join(f"{file} ({why})" for file, why in list(bad.items())[:_SHOWN])
    dots = "; …" if len(bad) > _SHOWN else ""
    examples = f" (skipped {len(bad)}: {named}{dots})" if bad else ""
    if not found:
        kinds = Counter(os.path.splitext(file)[1] or os.path.basename(file) for file in files)
        there = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(_SHOWN))
        rule = (
            f"has no usable file: looked for {looked_for} in it and below; "
            f"it holds {there or 'no file at all'}{examples}"
        )
        raise ConfigError("data.root", root, rule, "give another folder, or another modality")
    if len(bad) > max_bad_share * len(wanted):
        rule = (
            f"has {len(bad)} unusable of {len(wanted)} files, more than "
            f"max_bad_share={max_bad_share:g} allows{examples}"
        )
        remedy = "mend or remove them, or raise data.max_bad_share"
        raise ConfigError("data.root", root, rule, remedy)
    if bad and skipped.path:
        sizes = f"{len(bad):,} of {len(wanted):,} files"
        print(f"{sizes} cannot be used: {skipped.path} says why", file=sys.stderr)
    skipped.watch(root, list(found))
    return found


def _files(root: str, ignore: set[str], closed: dict[str, str]) -> list[str]:
    """All files below a folder that are not hidden; ``root`` itself if it is a file.

    They are strings, because ``Path`` takes ten times longer. Folders that cannot be opened are put
    into ``closed``, each with the reason.
    """
    if os.path.isfile(root):
        return [root]
    if not os.path.isdir(root):
        remedy = "give the folder that holds the data"
        if "://" in root:
            remedy = "copy it here, or put the data into shards: data=shards reads them from there"
        raise ConfigError("data.root", root, "is not a folder", remedy)

    def note(error: OSError) -> None:
        closed[error.filename] = f"cannot be opened ({error.strerror})"

    files: list[str] = []
    # For each folder the real paths of the folders above it: a link to one of these would never
    # end.
    above = {root: {os.path.realpath(root)}}
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
    return [file for file in files if not ignore or os.path.realpath(file) not in ignore]


def _check_all(
    files: list[str], check: Callable[[str], Info]
) -> tuple[dict[str, Info], dict[str, str]]:
    """What ``check`` returns for usable files, and the reasons for unusable ones.

    It prints its progress every few seconds.
    """

    def safe(file: str) -> Info | Unusable:
        try:
            if os.path.getsize(file) == 0:
                return Unusable("empty")
            if not os.access(file, os.R_OK):
                return Unusable("may not be read (no permission)")
            with reading("cannot be read"):
                return check(file)
        except Unusable as error:
            return error
        except OSError as error:
            return Unusable(f"cannot be read ({cause(error)})")

    parts = [files[i : i + _PART] for i in range(0, len(files), _PART)]
    found: dict[str, Info] = {}
    bad: dict[str, str] = {}
    told = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        for part, answers in zip(
            parts, pool.map(lambda part: list(map(safe, part)), parts), strict=True
        ):
            for file, answer in zip(part, answers, strict=True):
                if isinstance(answer, Unusable):
                    bad[file] = str(answer)
                else:
                    found[file] = answer
            if time.monotonic() - told > 2:
                told = time.monotonic()
                done = len(found) + len(bad)
                print(f"looking into files: {done:,} of {len(files):,}", file=sys.stderr)
    return found, bad
