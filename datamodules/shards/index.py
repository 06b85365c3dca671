"""The index of a shard: 16 bytes a sample beside the tar, and the tar's size and checksum."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from d2v_pretrain.atomic_files import atomic
from datamodules.datasets.base import RATE
from datamodules.datasets.sound import ENDINGS as AUDIO
from datamodules.datasets.sound import header
from datamodules.datasets.unusable import Unusable, reading
from datamodules.shards.members import further, numbered
from datamodules.shards.npy import ids_of
from datamodules.shards.tar import (
    BLOCK,
    MOST,
    Damaged,
    Member,
    is_unsafe,
    parts,
    walk,
)

# For each sample, in the order of the tar: the place of its first header, the size in bytes of all
# its members, and its length (in samples at 16 kHz or tokens, else 1; 0 if it cannot be used).
ENTRY = np.dtype([("offset", "<u8"), ("bytes", "<u4"), ("length", "<u4")])
_HEAD = struct.Struct("<8sII")  # magic, version, CRC-32 of all after it
_TOLD = struct.Struct("<QQQ")  # samples, bytes of the tar, CRC-32 of the tar
_BEGIN = _HEAD.size + _TOLD.size
_MAGIC, _VERSION = b"D2VINDEX", 1
_MOST = 2**32 - 1


@dataclass(frozen=True)
class Index:
    """The index of a tar.

    Args:
        entries: array of type ``ENTRY``, one entry for each sample.
        tar_bytes: size of the tar.
        tar_crc: CRC-32 of the tar.
    """

    entries: np.ndarray
    tar_bytes: int
    tar_crc: int


def index_path(tar: str) -> str:
    """``NAME.idx`` for ``NAME.tar``."""
    return f"{tar.removesuffix('.tar')}.idx"


def build_index(tar: str | Path, idx: str | Path | None = None) -> dict[str, str]:
    """Read a tar once and write its index atomically.

    Args:
        tar: plain tar file.
        idx: where to write the index; None writes it beside the tar.

    Returns:
        Samples that cannot be used -> the reason, with an entry for the place where the tar breaks
        off, if it does. The index holds the samples before that place.

    Raises:
        OSError: if the tar cannot be read or the index not written.
    """
    with open(tar, "rb") as file:
        index, refused = scan(file, os.fstat(file.fileno()).st_size)
    save(index, Path(idx or index_path(str(tar))))
    return refused


def scan(file: BinaryIO, size: int) -> tuple[Index, dict[str, str]]:
    """The index of a tar of ``size`` bytes, and what ``build_index`` returns."""
    summed, refused, rows = _Summed(file), dict[str, str](), []
    unused = dict[str, list[str]]()
    try:
        for sample in _samples(walk(summed, size)):  # type: ignore[arg-type]
            length = sample.measure()
            if sample.reason:
                refused[sample.key] = sample.reason
            elif beside := further(sample.members):
                unused[sample.key] = beside
            rows.append((sample.begin, min(sample.end - sample.begin, _MOST), length))
    except Damaged as error:
        refused[f"after sample {len(rows)}"] = str(error)
    if unused:
        refused["further members"] = _told(unused)
    while summed.read(1 << 20):  # the rest of the file, for its checksum
        pass
    return Index(np.array(rows, ENTRY), size, summed.crc), refused


def _told(unused: dict[str, list[str]]) -> str:
    """That members are not used, by the keys of their samples."""
    key, members = next(iter(unused.items()))
    count = sum(map(len, unused.values()))
    rule = "a sample has one sound, image or text, and its key ends at the first dot of its name"
    which = f"such as {members[0]} of {key}"
    return f"{count:,} members of {len(unused):,} samples are not used, {which}: {rule}"


class _Summed:
    """A file, and the CRC-32 of what was read from it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.crc = file, 0

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.crc = zlib.crc32(data, self.crc)
        return data


@dataclass
class _Sample:
    key: str
    begin: int
    end: int
    members: dict[str, bytes] = field(default_factory=dict)
    reason: str = ""

    def add(self, extension: str, member: Member) -> None:
        if is_unsafe(member.name):
            self.reason = "its name points out of the folder"
        elif extension in self.members:
            self.reason = f"has two members {extension}"
        elif member.end - self.begin > MOST:
            self.reason = "larger than 1 GiB"
        self.members[extension] = b"" if self.reason else member.data
        self.end = member.end

    def has(self, key: str, extension: str) -> bool:
        """Whether a member with this key and extension belongs to the sample; see ``numbered``."""
        if key != self.key:
            return False
        middle, last = numbered(extension), extension.rpartition(".")[2]
        ours = {numbered(name) for name in self.members}
        there = {name.rpartition(".")[2] for name in self.members}
        return middle is None or None in ours or middle in ours or last not in there

    def measure(self) -> int:
        """The length of the sample; 0, and ``reason`` set, if it cannot be used."""
        try:
            length = 0 if self.reason else length_of(self.members)
        except Damaged as error:
            length, self.reason = 0, str(error)
        if not self.reason and not 0 < length <= _MOST:
            length, self.reason = 0, f"has a length of {length}"
        return length


def _samples(members: Iterator[Member]) -> Iterator[_Sample]:
    """Samples: members with the same key that follow each other.

    The samples before a damaged place are yielded before the error is raised.
    """
    sample: _Sample | None = None
    broken: Damaged | None = None
    try:
        for member in members:
            if (named := parts(member.name)) is None:
                continue
            if sample is None or not sample.has(*named):
                if sample is not None:
                    yield sample
                sample = _Sample(named[0], member.begin, member.end)
            sample.add(named[1], member)
    except Damaged as error:
        broken = error
    if sample is not None:
        yield sample
    if broken is not None:
        raise broken


def length_of(members: dict[str, bytes]) -> int:
    """The length of a sample: of an audio member in samples at 16 kHz, of a ``npy`` member in
    tokens, 1 for anything else.

    Raises:
        Damaged: if that member cannot be read.
    """
    for extension, data in members.items():
        ending = f".{extension.rpartition('.')[2]}"
        if ending in AUDIO or ending == ".npy":
            try:
                return _samples_of(data) if ending in AUDIO else len(ids_of(data))
            except Unusable as error:
                raise Damaged(f"its {extension} cannot be read ({error})") from None
    return 1


def _samples_of(data: bytes) -> int:
    frames, rate = header(io.BytesIO(data))
    return -(-frames * RATE // rate)


def save(index: Index, path: Path) -> None:
    """Write an index atomically."""
    rows = index.entries.tobytes()
    told = _TOLD.pack(len(index.entries), index.tar_bytes, index.tar_crc)
    head = _HEAD.pack(_MAGIC, _VERSION, zlib.crc32(told + rows)) + told
    with atomic(path) as temporary:
        temporary.write_bytes(head + rows)


def load(path: str | Path, verified: bool = False) -> Index:
    """Read an index, its entries mapped from the file.

    Args:
        verified: whether this process has loaded it before and need not check its checksum again.

    Raises:
        Damaged: if the index is damaged, or of another version.
        OSError: if the file cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(_BEGIN)
        if len(head) < _BEGIN or head[: len(_MAGIC)] != _MAGIC:
            raise Damaged("not an index")
        _, version, crc = _HEAD.unpack_from(head)
        count, tar_bytes, tar_crc = _TOLD.unpack_from(head, _HEAD.size)
        if version != _VERSION:
            raise Damaged(f"of version {version}, and this program reads {_VERSION}")
        if os.fstat(file.fileno()).st_size != _BEGIN + count * ENTRY.itemsize:
            raise Damaged("breaks off")
        entries = np.memmap(file, ENTRY, "r", _BEGIN, (count,)) if count else np.empty(0, ENTRY)
    if not verified and crc != zlib.crc32(entries.tobytes(), zlib.crc32(head[_HEAD.size :])):
        raise Damaged("its checksum is wrong")
    return Index(entries, tar_bytes, tar_crc)


def joins_numbered(tar: str, index: Index) -> bool:
    """Whether an index, of an earlier version of this program, has numbered files as one sample.

    Only the first sample is compared, because reading all of a tar would take long.
    """
    if not len(index.entries):
        return False
    first = index.entries[0]
    try:
        with reading("is not the tar of this index"), open(tar, "rb") as file:
            file.seek(int(first["offset"]))
            sample = next(_samples(walk(file, int(first["bytes"]))), None)
    except (Unusable, OSError):
        return False  # whoever reads the tar will say what is wrong with it
    return sample is not None and sample.end < first["bytes"]


def is_whole(tar: str) -> bool:
    """Whether a tar ends as it should, with a block of zeros."""
    size = os.path.getsize(tar)
    with open(tar, "rb") as file:
        file.seek(max(0, size - BLOCK))
        return size % BLOCK == 0 and file.read(BLOCK) == bytes(BLOCK)
