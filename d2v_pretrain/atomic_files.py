"""Small files that survive a kill and a full disk: ``atomic()`` replaces a file whole or not at
all, ``append()`` adds a line, ``mend()`` repairs a file of lines that a kill has cut.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from d2v_pretrain.errors import ConfigError

Row = dict[str, Any]
_FREE_SPACE = "free some space, or keep fewer with checkpoint.keep_last; type the same command then"
_OTHER_FOLDER = "mend that, or choose a run folder that can be written (folder=DIR)"
# Why a file cannot be written -> in words, and what to do.
CAUSES = {
    errno.ENOSPC: ("no space is left", _FREE_SPACE),
    errno.EDQUOT: ("the disk quota is used up", _FREE_SPACE),
    errno.EFBIG: ("files may not be that large here", "raise the limit (ulimit -f)"),
    errno.EROFS: ("the file system is read-only", _OTHER_FOLDER),
    errno.EACCES: ("permission is denied", _OTHER_FOLDER),
    errno.EPERM: ("permission is denied", _OTHER_FOLDER),
    errno.ENOTDIR: ("a file is in the place of one of its folders", "move that file away"),
    errno.EEXIST: ("a file is in the place of one of its folders", "move that file away"),
    errno.EISDIR: ("a folder is in its place", "move that folder away"),
    errno.EIO: ("the disk failed", _OTHER_FOLDER),
    errno.ESTALE: ("the file server has lost its folder", _OTHER_FOLDER),
}


def cause(error: OSError) -> tuple[str, str]:
    """Why a file cannot be written, in words, and what to do about it."""
    return CAUSES.get(error.errno or 0, (str(error.strerror or error), _OTHER_FOLDER))


def unwritable(error: OSError, path: str | Path, key: str = "file") -> ConfigError:
    """The sentence for a file that cannot be written: which, why, and what to do.

    Args:
        error: what the system said.
        path: the file or folder.
        key: what it is.
    """
    _, remedy = cause(error)
    rule = f"cannot be written ({error.strerror or error})"
    return ConfigError(key, path, rule, remedy)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError of the block name this file. That of a full disk names none by itself."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def atomic(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Write a file so that readers find the old file or the new one and never a part, even after a
    kill.

    The block writes to the path that it is given. When it ends, that file is flushed to the disk
    and takes the name ``path``; when it fails, it is deleted and ``path`` is untouched.

    Args:
        path: the file; missing folders are made.
        temporary: the file to write to, in the same folder as ``path``. By default its name is
            hidden and contains the process id, so that several processes may write the same file.

    Raises:
        OSError: the disk refuses; its ``filename`` is ``path``.
    """
    temporary = temporary or path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _flush(path.parent)


def append(path: Path, text: str) -> None:
    """Add text at the end of a file. If the disk refuses, the file is as it was before.

    Raises:
        OSError: the disk refuses; its ``filename`` is ``path``.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            size, left = file.tell(), text.encode("utf-8")
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(size)
                raise


def json_lines(path: Path) -> tuple[list[Row], dict[int, str], str]:
    """A file of JSON objects, one on each line; it need not exist.

    Returns:
        The objects; the lines that are none, by their number; and what stands after the last
        newline, which is empty unless a kill or a full disk has cut the last line.
    """
    text = path.read_bytes().decode("utf-8", "replace") if path.exists() else ""
    *whole, cut = text.split("\n")
    rows: list[Row] = []
    broken: dict[int, str] = {}
    for number, line in enumerate(whole, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            broken[number] = line
    return rows, broken, cut


def mend(path: Path, keep: Callable[[Row], bool]) -> tuple[list[Row], list[str]]:
    """Repair a file of JSON objects, one on each line, before it is written on.

    A last line that was cut is dropped. Other broken lines are set aside in ``<name>.damaged``, as
    are objects for which ``keep`` raises a KeyError or TypeError. The file is written anew only if
    something has changed.

    Args:
        path: the file; it need not exist.
        keep: which of its objects stay.

    Returns:
        The objects that the file now holds, and what was repaired, in sentences.
    """
    rows, broken, cut = json_lines(path)
    told = [f"line {number} of {path} is not JSON ({text[:40]})" for number, text in broken.items()]
    kept, aside = [], list(broken.values())
    for row in rows:
        try:
            kept += [row] if keep(row) else []
        except (KeyError, TypeError):
            aside.append(json.dumps(row))
            told.append(f"{path} has a line that lacks something ({aside[-1][:40]})")
    if aside:
        told[-1] += f"; set aside in {path.name}.damaged"
        append(path.with_name(f"{path.name}.damaged"), "".join(f"{text}\n" for text in aside))
    if cut:
        told.append(f"the last line of {path} was cut ({cut[:40]}); it is dropped")
    if told or len(kept) < len(rows):
        with atomic(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")
    return kept, told


def set_aside(path: Path) -> Path:
    """Give a damaged file the name ``<name>.damaged``; returns its path there."""
    return path.replace(path.with_name(f"{path.name}.damaged"))


def _flush(path: Path) -> None:
    """Wait until the content of a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
