"""atomic(): write a file so that it has, at every moment, its old content or all of the new one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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
    """Wait until the content of a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
