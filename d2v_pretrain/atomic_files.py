"""atomic(): a file that is, at every moment, its old content or the whole new one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Write a file so that readers, and a run after a kill, find the old file or the new one.

    The block writes to the path that it is given. When it ends, that file is flushed to the disk
    and takes the name ``path``; when it fails, it is deleted and ``path`` is untouched.

    Args:
        path: the file; missing folders are made.
        temporary: what to write to, in the same folder as ``path``. By default a hidden name with
            the number of this process, so that several processes may write one file.

    Raises:
        OSError: the disk refuses.
    """
    temporary = temporary or path.with_name(f".{path.name}.{os.getpid()}.tmp")
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


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
