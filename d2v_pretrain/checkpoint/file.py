"""Checkpoint files: written atomically, with a checksum, of plain types only.

A checkpoint is an ordinary ``torch.save`` file, which is a zip archive. Its zip *comment* holds the
step and a SHA-256 of every byte before it. All zip readers, ``torch.load`` included, skip a
comment. A second file for the checksum would not do, because two files cannot be renamed at once.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, cast

import torch
from torch import Tensor

from d2v_pretrain.atomic_files import atomic
from d2v_pretrain.errors import ConfigError

TEMPORARY = ".saving.tmp"  # one name per folder, so that a save overwrites what a kill left behind
_COMMENT = re.compile(rb"d2v_pretrain sha256=([0-9a-f]{64}) step=(\d{12})")
_COMMENT_SIZE = len("d2v_pretrain sha256= step=") + 64 + 12
_CHUNK = 1 << 22
_PLAIN = (int, float, str, bool, bytes, complex, type(None), torch.Size, torch.dtype, torch.device)
_FREE_SPACE = "free some space, or keep fewer with checkpoint.keep_last"
_OTHER_FOLDER = "choose a run folder that can be written"
_CAUSES = {
    errno.ENOSPC: ("no space is left", _FREE_SPACE),
    errno.EDQUOT: ("the disk quota is used up", _FREE_SPACE),
    errno.EROFS: ("the file system is read-only", _OTHER_FOLDER),
    errno.EACCES: ("permission is denied", _OTHER_FOLDER),
}


def write(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint atomically: at every moment ``path`` is either the old file or the new
    one.

    The writer needs no memory beyond the content.

    Args:
        content: tensors and plain Python types under string keys, with ``global_step``. Anything
            else is an assertion error that says where it is, because such a file could not be read
            back.
        path: the file to write; missing folders are made.

    Raises:
        ConfigError: the disk is full, read-only or refuses for another reason. The old file is
            untouched.
    """
    stranger = next(_strangers(content, "checkpoint"), None)
    assert stranger is None, f"{stranger}: only tensors and plain types may be saved"
    try:
        with atomic(path, path.parent / TEMPORARY) as temporary:
            _write_with_checksum(content, temporary)
    except OSError as error:
        cause, remedy = _CAUSES.get(
            error.errno or 0, (str(error.strerror or error), "look at the run folder")
        )
        free = ""
        if path.parent.is_dir():
            free = f" ({shutil.disk_usage(path.parent).free / 1e9:.1f} GB free)"
        rule = f"could not be written: {cause}{free}; what was saved before is intact"
        raise ConfigError("checkpoint", path, rule, remedy) from error


def read(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint after checking every byte of it. Code in the file is never run.

    Args:
        path: a file that ``write`` wrote.
        map_location: as in ``torch.load``.

    Raises:
        ConfigError: the file is missing, cut short, changed or not a checkpoint, or holds objects
            other than tensors and plain types.
    """
    if (reason := fault(path)) is not None:
        raise ConfigError("checkpoint", path, reason, "choose another file in its folder")
    return _loaded(path, map_location)


def config_of(path: Path) -> str:
    """The configuration that a checkpoint was made with, as YAML, without reading its tensors.

    Raises:
        ConfigError: the file cannot be read, or has no configuration: it is not a checkpoint of a
            run, or was written by another version.
    """
    content = _loaded(path, "cpu", mmap=True)
    if "config" not in content or "position" not in content:
        rule = "has no configuration or no position: it was not written by a run of this version"
        remedy = "move it away, or start from its weights with name=… init_from=…"
        raise ConfigError("checkpoint", path, rule, remedy)
    return content["config"]


def _loaded(path: Path, map_location: Any, mmap: bool | None = None) -> dict[str, Any]:
    """The content of a file. Torch's own messages are not shown where they advise to load it with
    its code."""
    try:
        content = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except UnpicklingError:
        rule = "holds objects other than tensors and plain types; loading those could run any code"
        remedy = "use a file that this program wrote"
        raise ConfigError("checkpoint", path, rule, remedy) from None
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a parser of foreign bytes may raise
        rule = f"is no archive of tensors and plain types ({type(error).__name__})"
        raise ConfigError("checkpoint", path, rule, "use a file that this program wrote") from None
    if not isinstance(content, dict):
        rule = f"holds a {type(content).__name__} and not the parts of a run"
        raise ConfigError("checkpoint", path, rule, "use a file that this program wrote")
    return content


def fault(path: Path) -> str | None:
    """Why a file cannot be used, as a clause ("is empty"); None if all bytes are as written."""
    if not path.is_file():
        return "does not exist"
    if path.stat().st_size == 0:
        return "is empty"
    with path.open("rb") as file:
        trailer = _trailer(file)
        if trailer is None:
            return "is cut short, or was not written by this program: it does not end in a checksum"
        digest, step = trailer
        same = _digest(file, step) == digest
        return None if same else "is corrupt: its bytes do not match its checksum"


def step_of(path: Path) -> int:
    """The optimizer step at which a checkpoint was saved, read from its last bytes; -1 if the file
    is not one of our checkpoints.
    """
    if not path.is_file():
        return -1
    with path.open("rb") as file:
        trailer = _trailer(file)
    return -1 if trailer is None else trailer[1]


def newest_valid(folder: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The undamaged checkpoint of the highest step.

    The last bytes of every file tell its step (see ``step_of``); its name does not matter. From the
    highest step down, files are read in full and checked until one is undamaged.

    Args:
        folder: searched for ``*.ckpt``, without its subfolders. It need not exist.

    Returns:
        That checkpoint, or None if there is none; and the damaged files that were passed over, each
        with the reason. Files of lower steps are not checked.
    """

    def age(path: Path) -> tuple[int, str]:
        return step_of(path), path.name

    newest_first = sorted(folder.glob("*.ckpt"), key=age, reverse=True)
    # The step of a file that is cut short is unknown: it may be the newest, so it is reported.
    rejected = [(path, fault(path) or "") for path in newest_first if step_of(path) < 0]
    for path in newest_first[: len(newest_first) - len(rejected)]:
        reason = fault(path)
        if reason is None:
            return path, rejected
        rejected.append((path, reason))
    return None, rejected


class _Hashing:
    """A file whose bytes are hashed while ``torch.save`` writes them."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _write_with_checksum(content: Mapping[str, Any], path: Path) -> None:
    step = int(content["global_step"])
    with path.open("wb") as file:
        hashing = _Hashing(file)
        try:
            torch.save(dict(content), cast(IO[bytes], hashing))
        except RuntimeError as error:
            # After a failed write torch closes its archive, and that error hides the first one.
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        hashing.sha256.update(b"%012d" % step)
        # The last two bytes of a zip are the length of its comment. They are still 0 here, and are
        # hashed as 0.
        file.seek(-2, os.SEEK_END)
        comment = b"d2v_pretrain sha256=%s step=%012d" % (hashing.sha256.hexdigest().encode(), step)
        file.write(len(comment).to_bytes(2, "little") + comment)


def _trailer(file: IO[bytes]) -> tuple[str, int] | None:
    """The SHA-256 and the step in the zip comment of a file; None if it has no such comment."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _COMMENT_SIZE - 2))
    tail = file.read()
    match = _COMMENT.fullmatch(tail[2:])
    if match is None or int.from_bytes(tail[:2], "little") != _COMMENT_SIZE:
        return None
    return match[1].decode(), int(match[2])


def _digest(file: IO[bytes], step: int) -> str:
    left, sha256 = file.seek(0, os.SEEK_END) - _COMMENT_SIZE - 2, hashlib.sha256()
    file.seek(0)
    while left > 0:
        chunk = file.read(min(left, _CHUNK))
        sha256.update(chunk)
        left -= len(chunk)
    sha256.update(b"\0\0%012d" % step)
    return sha256.hexdigest()


def _strangers(value: Any, where: str) -> Iterator[str]:
    """Describe each value that ``torch.load(weights_only=True)`` would refuse, and where it is:
    "checkpoint.callbacks.x is numpy.float64".
    """
    if isinstance(value, Tensor) or type(value) in _PLAIN:
        return
    if type(value) in (dict, OrderedDict):
        for key, inner in value.items():
            yield from _strangers(key, f"a key of {where}")
            yield from _strangers(inner, f"{where}.{key}")
    elif type(value) in (list, tuple, set):
        for i, inner in enumerate(value):
            yield from _strangers(inner, f"{where}[{i}]")
    else:
        yield f"{where} is {type(value).__module__}.{type(value).__qualname__}"
