"""Checkpoint files: atomic, checksummed, plain types only; newest_valid() falls back past torn and
corrupt ones.

A checkpoint is an ordinary ``torch.save`` file, which is a zip archive, and its zip *comment* holds
a SHA-256 of every byte before it and the step. A trailer and not a sidecar, because one file can be
renamed atomically and two cannot; a zip comment, because every zip reader, ``torch.load`` included,
skips it."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, cast

import torch
from torch import Tensor

from d2v_pretrain.errors import ConfigError

TEMPORARY = (
    ".saving.tmp"  # one name a folder: what a killed run leaves behind, the next save overwrites
)
_COMMENT = re.compile(rb"d2v_pretrain sha256=([0-9a-f]{64}) step=(\d{12})")
_COMMENT_SIZE = len("d2v_pretrain sha256= step=") + 64 + 12
_CHUNK = 1 << 22
_PLAIN = (int, float, str, bool, bytes, complex, type(None), torch.Size, torch.dtype, torch.device)
_CAUSES = {
    errno.ENOSPC: ("no space is left", "free some space, or keep fewer with checkpoint.keep_last"),
    errno.EDQUOT: (
        "the disk quota is used up",
        "free some space, or keep fewer with checkpoint.keep_last",
    ),
    errno.EROFS: ("the file system is read-only", "choose a run folder that can be written"),
    errno.EACCES: ("permission is denied", "choose a run folder that can be written"),
}


def write(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint so that ``path`` is, at every moment, its old content or the whole new
    one.

    Temporary file in the same folder, fsync, rename, fsync of the folder. Costs no memory beyond
    the content.

    Args:
        content: tensors and plain Python types under string keys, with ``global_step``. Anything
            else is an assertion error that names where it sits, because such a file could not be
            read back.
        path: where to; missing folders are made.

    Raises:
        ConfigError: the disk is full, read-only or otherwise refuses; the file that was there is
            untouched.
    """
    stranger = next(_strangers(content, "checkpoint"), None)
    assert stranger is None, f"{stranger}: only tensors and plain types may be saved"
    temporary = path.parent / TEMPORARY
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(content, temporary)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise _refusal(path, error) from error


def read(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint back after checking every byte of it; never runs code that a file may hold.

    Args:
        path: what ``write`` wrote. map_location: as in ``torch.load``.

    Raises:
        ConfigError: missing, torn, changed, foreign, or holding more than tensors and plain types.
    """
    if (reason := fault(path)) is not None:
        raise ConfigError("checkpoint", path, reason, "choose another file in its folder")
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except UnpicklingError as error:
        rule = (
            "holds objects other than tensors and plain types, and loading those could run any code"
        )
        raise ConfigError(
            "checkpoint", path, rule, "save it again with plain types only"
        ) from error


def config_of(path: Path) -> str:
    """The configuration, as YAML, that a checkpoint was made with, without reading its tensors.

    Raises:
        ConfigError: the file has none, so it is not a checkpoint of a run or one of another
            version.
    """
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if "config" not in content or "position" not in content:
        rule = "was not written by a pretraining run of this version: it has no configuration or no position"
        raise ConfigError(
            "checkpoint",
            path,
            rule,
            "move it away, or start from its weights with name=… init_from=…",
        )
    return content["config"]


def write_text(text: str, path: Path) -> None:
    """Replace a small text file at once: a reader, and a run after a kill, finds the old one or the
    new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def fault(path: Path) -> str | None:
    """Why a file cannot be trusted, as a clause ("is cut short or ..."), or None if all its bytes
    are as written."""
    if not path.is_file():
        return "does not exist"
    if path.stat().st_size == 0:
        return "is empty"
    with path.open("rb") as file:
        trailer = _trailer(file)
        if trailer is None:
            return "is cut short, or was not written by this program: it does not end in a checksum"
        digest, step = trailer
        return (
            None
            if _digest(file, step) == digest
            else "is corrupt: its bytes do not match its checksum"
        )


def step_of(path: Path) -> int:
    """The optimizer step a checkpoint was saved at, from its last bytes alone; -1 if it has no
    trailer."""
    if not path.is_file():
        return -1
    with path.open("rb") as file:
        trailer = _trailer(file)
    return -1 if trailer is None else trailer[1]


def newest_valid(folder: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The checkpoint of the highest step that is whole, judged by content: neither names nor file
    times count.

    Args:
        folder: searched for ``*.ckpt``, not below. It need not exist.

    Returns:
        The file, or None, and what was passed over with the reason of each. Older whole files are
        not read.
    """
    newest_first = sorted(
        folder.glob("*.ckpt"), key=lambda path: (step_of(path), path.name), reverse=True
    )
    # A file cut at its end no longer tells its step: it may have been the newest, so it is always
    # reported.
    rejected = [(path, fault(path) or "") for path in newest_first if step_of(path) < 0]
    for path in newest_first[: len(newest_first) - len(rejected)]:
        reason = fault(path)
        if reason is None:
            return path, rejected
        rejected.append((path, reason))
    return None, rejected


class _Hashing:
    """A file that is hashed while ``torch.save`` writes it, which spares a second pass over it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _write_whole(content: Mapping[str, Any], path: Path) -> None:
    step = int(content["global_step"])
    with path.open("wb") as file:
        hashing = _Hashing(file)
        try:
            torch.save(dict(content), cast(IO[bytes], hashing))
        except RuntimeError as error:
            # torch closes its archive after a failed write, and that failure hides the reason.
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        hashing.sha256.update(b"%012d" % step)
        file.seek(
            -2, os.SEEK_END
        )  # a zip ends in the length of its comment, zero so far; it was hashed as zero
        comment = b"d2v_pretrain sha256=%s step=%012d" % (hashing.sha256.hexdigest().encode(), step)
        file.write(len(comment).to_bytes(2, "little") + comment)
        file.flush()
        os.fsync(file.fileno())


def _trailer(file: IO[bytes]) -> tuple[str, int] | None:
    """(digest, step) from the zip comment, or None."""
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
    """Where something sits that ``torch.load(weights_only=True)`` would refuse:
    "checkpoint.callbacks.x is float64"."""
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


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refusal(path: Path, error: OSError) -> ConfigError:
    cause, remedy = _CAUSES.get(
        error.errno or 0, (str(error.strerror or error), "look at the run folder")
    )
    free = ""
    if path.parent.is_dir():
        free = f" ({shutil.disk_usage(path.parent).free / 1e9:.1f} GB free)"
    return ConfigError(
        "checkpoint",
        path,
        f"could not be written: {cause}{free}; what was saved before is intact",
        remedy,
    )
