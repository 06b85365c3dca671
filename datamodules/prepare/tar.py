"""Tar files whose bytes depend on nothing but their members: no times, no owners, members of a
sample side by side."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

TAR_BLOCK = 512


@dataclass(frozen=True)
class Sample:
    """What is written of one sample.

    Args:
        key: name of its members before the first dot.
        members: extension -> bytes.
        length: in samples at 16 kHz, tokens, or 1.
    """

    key: str
    members: dict[str, bytes]
    length: int


@dataclass(frozen=True)
class Written:
    """A tar file: its samples, the sum of their lengths, its bytes and SHA-256 (hexadecimal)."""

    samples: int
    length: int
    bytes: int
    sha256: str


class _Hashed(io.RawIOBase):
    """A file that is hashed while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hash, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.hash.update(data)
        self.bytes += len(data)
        return self.file.write(data)


def write_tar(path: Path, samples: Iterable[Sample]) -> Written:
    """Write a tar file, on the disk when this returns; not atomic, ``path`` is a temporary name."""
    count = length = 0
    with path.open("wb") as file:
        hashed = _Hashed(file)
        with tarfile.open(fileobj=hashed, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
            for sample in samples:
                for extension, data in sorted(sample.members.items()):
                    member = tarfile.TarInfo(
                        f"{sample.key}.{extension}"
                    )  # time, owner and group are 0 in a new one
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                count, length = count + 1, length + sample.length
        file.flush()
        os.fsync(file.fileno())
    return Written(count, length, hashed.bytes, hashed.hash.hexdigest())


def tar_bytes(*sizes: int) -> int:
    """Bytes that members of these sizes take."""
    return sum(TAR_BLOCK + -(-size // TAR_BLOCK) * TAR_BLOCK for size in sizes)
