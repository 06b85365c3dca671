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
import soundfile

from datamodules.datasets.audio_folder import ENDINGS as SOUNDS
from datamodules.datasets.audio_folder import RATE
from datamodules.shards.tar import BLOCK, Damaged, Member, is_unsafe, parts, walk

# Where a sample's first header is, the bytes of all its members, and its length: samples at 16 kHz,
# tokens, else 1; 0 for a sample that cannot be used. Sequence of samples as in the tar.
ENTRY = np.dtype([("offset", "<u8"), ("bytes", "<u4"), ("length", "<u4")])
_HEAD = struct.Struct("<8sII")  # magic, version, CRC-32 of all after it
_TOLD = struct.Struct("<QQQ")  # samples, bytes of the tar, CRC-32 of the tar
_BEGIN = _HEAD.size + _TOLD.size
_MAGIC, _VERSION = b"D2VINDEX", 1
_MOST = 2**32 - 1


@dataclass(frozen=True)
class Index:
    """What is known of a tar; ``entries`` (n,) of type ``ENTRY``."""

    entries: np.ndarray
    tar_bytes: int
    tar_crc: int


def index_path(tar: str) -> str:
    """``NAME.idx`` for ``NAME.tar``."""
    return f"{tar.removesuffix('.tar')}.idx"


def build_index(tar: str | Path, idx: str | Path | None = None) -> dict[str, str]:
    """Read a tar once and write its index, at once or not at all.

    Args:
        tar: plain tar file. idx: where to write; None for beside it.

    Returns:
        Samples that cannot be used, and where the tar breaks off: name -> reason. The index has
            what came before.

    Raises:
        OSError: if the tar cannot be read or the index not written.
    """
    with open(tar, "rb") as file:
        index, refused = scan(file, os.fstat(file.fileno()).st_size)
    save(index, Path(idx or index_path(str(tar))))
    return refused


def scan(file: BinaryIO, size: int) -> tuple[Index, dict[str, str]]:
    """The index of a tar of ``size`` bytes that is read from its beginning, and what
    ``build_index`` returns."""
    summed, refused, rows = _Summed(file), dict[str, str](), []
    try:
        for sample in _samples(walk(summed, size)):  # type: ignore[arg-type]
            length = sample.measure()
            if sample.end - sample.begin > _MOST:
                length, sample.reason = 0, "larger than 4 GiB"
            if sample.reason:
                refused[sample.key] = sample.reason
            rows.append((sample.begin, min(sample.end - sample.begin, _MOST), length))
    except Damaged as error:
        refused[f"after sample {len(rows)}"] = str(error)
    while summed.read(1 << 20):
        pass
    return Index(np.array(rows, ENTRY), size, summed.crc), refused


class _Summed:
    """A file and the CRC-32 of what was read of it."""

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
        self.members[extension] = member.data
        self.end = member.end

    def measure(self) -> int:
        """Its length; 0, with a reason, if it has none."""
        try:
            length = 0 if self.reason else length_of(self.members)
        except Damaged as error:
            length, self.reason = 0, str(error)
        if not self.reason and not 0 < length <= _MOST:
            length, self.reason = 0, f"has a length of {length}"
        return length


def _samples(members: Iterator[Member]) -> Iterator[_Sample]:
    """Members next to one another with the same key."""
    sample: _Sample | None = None
    broken: Damaged | None = None
    try:
        for member in members:
            if (named := parts(member.name)) is None:
                continue
            if sample is None or named[0] != sample.key:
                if sample is not None:
                    yield sample
                sample = _Sample(named[0], member.begin, member.end)
            sample.add(named[1], member)
    except Damaged as error:
        broken = error
    if sample is not None:
        yield sample
    if broken is not None:  # after what came before it
        raise broken


def length_of(members: dict[str, bytes]) -> int:
    """Samples at 16 kHz of a sound, tokens of a ``npy`` row of ids, 1 of anything else.

    Raises:
        Damaged: if the sound or the row cannot be read.
    """
    for extension, data in members.items():
        ending = f".{extension.rpartition('.')[2]}"
        if ending in SOUNDS or ending == ".npy":
            try:
                return _frames(data) if ending in SOUNDS else _tokens(data)
            except (soundfile.SoundFileError, RuntimeError, ValueError, EOFError) as error:
                raise Damaged(f"its {extension} cannot be read ({error})") from None
    return 1


def _frames(data: bytes) -> int:
    info = soundfile.info(io.BytesIO(data))
    return -(-info.frames * RATE // info.samplerate)


def _tokens(data: bytes) -> int:
    ids = np.load(io.BytesIO(data), allow_pickle=False)
    if ids.ndim != 1:
        raise ValueError(f"shape {ids.shape} is no row")
    return len(ids)


def save(index: Index, path: Path) -> None:
    """Write an index so that it is there whole or not at all."""
    rows = index.entries.tobytes()
    told = _TOLD.pack(len(index.entries), index.tar_bytes, index.tar_crc)
    head = _HEAD.pack(_MAGIC, _VERSION, zlib.crc32(told + rows)) + told
    half = path.with_name(f"{path.name}.{os.getpid()}.half")
    try:
        with half.open("wb") as file:
            file.write(head + rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)
    except OSError:
        half.unlink(missing_ok=True)
        raise


def load(path: str | Path, verified: bool = False) -> Index:
    """Read an index, its entries mapped from the file.

    Args:
        verified: whether this process has loaded it before and need not check it again.

    Raises:
        Damaged: if it is not whole, or of another version.
        OSError: if it cannot be read.
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


def is_whole(tar: str) -> bool:
    """Whether a tar ends as one should: with a block of zeros."""
    size = os.path.getsize(tar)
    with open(tar, "rb") as file:
        file.seek(max(0, size - BLOCK))
        return size % BLOCK == 0 and file.read(BLOCK) == bytes(BLOCK)
