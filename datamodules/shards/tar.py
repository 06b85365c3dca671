"""Tar files of WebDataset's samples: walk() and sample_of() read them, write_tar() writes them."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from webdataset import TarWriter
from webdataset.tariterators import base_plus_ext

from datamodules.datasets.unusable import Unusable
from datamodules.shards.members import numbered

BLOCK = 512
MOST = 1 << 30  # bytes of a sample; larger ones are not read into memory
_MOST_ABOUT = 1 << 16  # bytes of a header about the next member (a long name)
_ZERO = bytes(BLOCK)
_META = re.compile(r"__[^/]*__($|/)")  # names that WebDataset ignores
_RECORD = re.compile(rb"(\d{1,9}) ([^=]+)=")
_REGULAR = {b"0", b"\0", b"7"}
_EMPTY = {b"1", b"2", b"3", b"4", b"5", b"6"}  # links, folders and devices have no data
_LONG_NAME, _PAX, _SPARSE = b"L", b"x", b"S"
_OF_THE_NEXT = {_LONG_NAME, _PAX, b"X", b"K"}  # headers that describe the next member


class Damaged(Exception):
    """Bytes that are not what they should be; the message says how."""


class Member(NamedTuple):
    """A regular file in a tar.

    Args:
        name: path in the tar.
        begin: place of its first header (a long name has headers of its own).
        end: place where the next member begins.
        size: of the file in bytes.
        data: the bytes of the file; empty if they are more than ``MOST``.
    """

    name: str
    begin: int
    end: int
    size: int
    data: bytes


def walk(file: BinaryIO, size: int) -> Iterator[Member]:
    """The regular members in order, up to the end mark or ``size`` bytes.

    Reads ustar, GNU and pax headers as Python's tarfile does, but several times as fast: with
    tarfile the headers would cost more than the data.

    Raises:
        Damaged: at a wrong header, or where a member goes beyond ``size``. The members before it
            are sound.
    """
    place = begin = 0
    better: dict[str, str] = {}  # path and size from headers that describe the next member
    while place < size:
        block = file.read(BLOCK)
        if block == _ZERO:
            return
        kind, name, length = _header(block, place)
        if kind not in _OF_THE_NEXT:
            name, length = better.pop("path", name), int(better.pop("size", length))
        end = place + BLOCK + (0 if kind in _EMPTY else -(-length // BLOCK) * BLOCK)
        if end > size:
            raise Damaged(f"breaks off: the member at byte {begin} ends at byte {end} of {size}")
        if kind in _OF_THE_NEXT and length > _MOST_ABOUT:
            raise Damaged(f"a header of {length:,} bytes at byte {place}")
        left = end - place - BLOCK
        data = file.read(min(length, left)) if length <= MOST else b""
        _skip(file, left - len(data))
        place = end
        if kind == _LONG_NAME:
            better["path"] = _text(data)
        elif kind == _PAX:
            better |= _records(data)
        elif kind in _REGULAR and not (kind == b"\0" and name.endswith("/")):
            yield Member(name, begin, end, length, data)
        if kind not in _OF_THE_NEXT:
            begin, better = end, {}


def _skip(file: BinaryIO, count: int) -> None:
    while count > 0 and (skipped := len(file.read(min(count, 1 << 20)))):
        count -= skipped


def _header(block: bytes, place: int) -> tuple[bytes, str, int]:
    """Type, name and size of the member that a header block describes."""
    try:
        told, length = _number(block[148:156]), _number(block[124:136])
    except ValueError:
        told = length = -1
    if len(block) < BLOCK or told != sum(block) - sum(block[148:156]) + 256 or length < 0:
        raise Damaged(f"no member at byte {place}: wrong header")
    kind, name, prefix = block[156:157], _text(block[:100]), _text(block[345:500])
    if kind == _SPARSE:
        raise Damaged(f"a sparse member at byte {place}")
    return kind, f"{prefix}/{name}" if prefix and kind not in _OF_THE_NEXT else name, length


def _number(field: bytes) -> int:
    if field[:1] == b"\x80":  # GNU: a binary number, for more than 8 GB
        return int.from_bytes(field[1:], "big")
    return int(field.split(b"\0", 1)[0].strip() or b"0", 8)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _records(data: bytes) -> dict[str, str]:
    """Path and size from a pax header, records ``<length> <key>=<value>`` and a line feed."""
    found, place = {}, 0
    while (match := _RECORD.match(data, place)) and match.end() < (end := place + int(match[1])):
        key = match[2].decode("utf-8", "replace")
        value = _text(data[match.end() : end - 1])
        if key == "path" or (key == "size" and re.fullmatch("[0-9]{1,20}", value)):
            found[key] = value
        place = end
    return found


def parts(name: str) -> tuple[str, str] | None:
    """Key of the sample and extension (lower case) of a member; None if WebDataset ignores it.

    The key reaches to the first dot after the last slash. Members in a row that have the
    same key form a sample, but for numbered files (see ``numbered``).
    """
    key, extension = base_plus_ext(name)
    return None if key is None or _META.match(name) else (key, extension.lower())


def is_unsafe(name: str) -> bool:
    """Whether a name points out of its folder.

    We extract nothing to the disk, but such a tar is not to be trusted.
    """
    return name.startswith("/") or ".." in name.split("/")


def sample_of(span: bytes) -> tuple[str, dict[str, bytes]]:
    """Key of a sample, and its members by extension (lower case), from its bytes in the tar.

    The key of a numbered file has its number, and its extensions do not.

    Raises:
        Unusable: if the bytes are not exactly one sample.
    """
    key, members = "", dict[str, bytes]()
    try:
        for member in walk(io.BytesIO(span), len(span)):
            if (named := parts(member.name)) is None:
                continue
            if is_unsafe(member.name) or named[1] in members:
                raise Unusable(f"has a member that is refused: {member.name}")
            key, members[named[1]] = named[0], member.data
    except Damaged as error:
        raise Unusable(str(error)) from None
    if not members:
        raise Unusable("no member where the index has one")
    middle = {numbered(extension) for extension in members}
    if middle != {None} and len(middle) == 1:
        key = f"{key}.{middle.pop()}"
        members = {name.rpartition(".")[2]: data for name, data in members.items()}
    return key, members


def one_of(members: dict[str, bytes], endings: tuple[str, ...]) -> bytes:
    """The first member with one of these endings (``.flac``).

    Raises:
        Unusable: if there is none.
    """
    for extension, data in members.items():
        if f".{extension.rpartition('.')[2]}" in endings:
            return data
    raise Unusable(f"has no member {' or '.join(endings)}; it has {', '.join(members)}")


@dataclass(frozen=True)
class Sample:
    """A sample to write.

    Args:
        key: name of its members before the first dot.
        members: extension -> bytes.
        length: length in samples at 16 kHz or in tokens; 1 for other samples.
    """

    key: str
    members: dict[str, bytes]
    length: int


@dataclass(frozen=True)
class Written:
    """A tar file that was written.

    Args:
        samples: number of samples.
        length: sum of the samples' lengths.
        bytes: size of the file.
        sha256: of the file, hexadecimal.
    """

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
    """Write a tar file in which equal samples give equal bytes: no times and no owners.

    The file is on the disk when this returns. Writing is not atomic: ``path`` should be a temporary
    name.
    """
    count = length = 0
    with path.open("wb") as file:
        hashed = _Hashed(file)
        # encoder=False: the members are bytes already.
        with TarWriter(hashed, user="", group="", mode=0o644, mtime=0, encoder=False) as tar:
            for sample in samples:
                tar.write({"__key__": sample.key, **sample.members})
                count, length = count + 1, length + sample.length
        file.flush()
        os.fsync(file.fileno())
    return Written(count, length, hashed.bytes, hashed.hash.hexdigest())


def tar_bytes(*sizes: int) -> int:
    """Bytes that members of these sizes take in a tar, with their headers."""
    return sum(BLOCK + -(-size // BLOCK) * BLOCK for size in sizes)
