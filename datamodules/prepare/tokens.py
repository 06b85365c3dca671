"""TokenStream: text, or fairseq's binarised data, as one stream of tokens on the disk."""

from __future__ import annotations

import io
import itertools
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.types import EOS
from datamodules.parallel import advance, spread
from datamodules.prepare.output import replace
from datamodules.prepare.settings import Text
from datamodules.transforms import tokenizer
from datamodules.transforms.tokenizer import Vocabulary

_MMAP, _OTHER = b"MMIDIDX\x00\x00", b"TNTIDX\x00\x00"  # the first bytes of fairseq's index files
_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2", 9: "<u4", 10: "<u8"}


@dataclass(frozen=True)
class Part:
    """Part of a text file: the lines that begin at byte ``start`` or later, and before ``end``."""

    file: str
    start: int
    end: int

    def lines(self) -> Iterator[str]:
        """Its lines, stripped, including blank ones, without a byte order mark."""
        with open(self.file, "rb") as file:
            start, end = (_line_start(file, place) for place in (self.start, self.end))
            file.seek(start)
            data = file.read(end - start)
        encoding = "utf-8" if start else "utf-8-sig"
        yield from map(str.strip, io.TextIOWrapper(io.BytesIO(data), encoding))


def _line_start(file: io.BufferedReader, place: int) -> int:
    if place == 0:
        return 0
    file.seek(place - 1)
    file.readline()
    return file.tell()


def parts(file: str, size: int, part: int) -> list[Part]:
    """A file of ``size`` bytes in parts of about ``part`` bytes."""
    starts = range(0, size, part)
    return [Part(file, start, min(start + part, size)) for start in starts]


@dataclass(frozen=True)
class Tokens:
    """A stream of tokens in files.

    Args:
        files: the files, in order.
        type: numpy's name of the type of the ids in the files.
        starts: the place in the stream where each file begins, and the end of the stream.
        vocab_size: number of ids, with the special ones.
    """

    files: list[str]
    type: str
    starts: np.ndarray
    vocab_size: int

    def cut(self, start: int, end: int) -> np.ndarray:
        """The ids in the stream from ``start`` up to ``end``."""
        first, last = np.searchsorted(self.starts, [start, end - 1], "right") - 1
        found = [
            _opened(self.files[n], self.type)[max(start - self.starts[n], 0) : end - self.starts[n]]
            for n in range(first, last + 1)
        ]
        return np.concatenate(found)


@dataclass(frozen=True)
class TokenStream:
    """A stream of tokens and the sizes of its lines.

    Args:
        tokens: the stream.
        sizes: for each document, the files that hold the sizes of its lines; or one array of sizes.
    """

    tokens: Tokens
    sizes: list[list[str]] | np.ndarray

    def documents(self) -> Iterator[Iterator[np.ndarray]]:
        """For each document the sizes of its lines, in parts."""
        if isinstance(self.sizes, np.ndarray):
            yield (self.sizes[i : i + 1_000_000] for i in range(0, len(self.sizes), 1_000_000))
        else:
            yield from (map(_sizes, document) for document in self.sizes)


@lru_cache(maxsize=64)
def _opened(file: str, type: str) -> np.ndarray:
    return np.memmap(file, type, "r") if os.path.getsize(file) else np.empty(0, type)


def _sizes(file: str) -> np.ndarray:
    return np.fromfile(file, "<u4")


@dataclass(frozen=True)
class _Task:
    part: Part
    tokens: Path
    sizes: Path
    tokenizer: str
    type: str
    blank: bool


def tokenised(files: dict[str, int], folder: Path, vocabulary: Path, settings: Text) -> TokenStream:
    """Tokenise text files, each line with </s> behind it, into temporary files.

    Temporary files that exist already are not written again.

    Args:
        files: file -> its size in bytes.
        folder: of the temporary files.
        vocabulary: see ``datamodules.transforms.tokenizer.load``.
        settings: of the command.
    """
    size, megabyte = tokenizer.load(vocabulary).size, 1_000_000
    blank, type = settings.blank_lines == "keep", "<u2" if size <= 1 << 16 else "<u4"
    number = itertools.count()
    tasks = [
        [
            _Task(
                part,
                folder / f"{(n := next(number)):06d}.tokens",
                folder / f"{n:06d}.sizes",
                str(vocabulary),
                type,
                blank,
            )
            for part in parts(file, size_, max(1, int(settings.part_mb * megabyte)))
        ]
        for file, size_ in files.items()
    ]
    every = [task for document in tasks for task in document]
    todo = [task for task in every if not task.sizes.exists()]
    found = sum(task.part.end - task.part.start for task in every if task.sizes.exists())
    total = sum(files.values())
    done = spread(_tokenise, todo, settings.processes, total, "tokenising", "MB", megabyte, found)
    for _ in done:
        pass
    counts = [task.tokens.stat().st_size // np.dtype(type).itemsize for task in every]
    tokens = Tokens([str(task.tokens) for task in every], type, np.cumsum([0, *counts]), size)
    return TokenStream(tokens, [[str(task.sizes) for task in document] for document in tasks])


def _tokenise(task: _Task) -> None:
    ids = [np.append(line, EOS) for line in _vocabulary(task.tokenizer).encode(task.part.lines())]
    ids = [line for line in ids if task.blank or len(line) > 1]
    stream = np.concatenate(ids) if ids else np.empty(0)
    replace(task.tokens, stream.astype(task.type).tobytes())
    # The sizes are written last: a part whose sizes exist is complete.
    replace(task.sizes, np.array([len(line) for line in ids], "<u4").tobytes())
    advance(task.part.end - task.part.start)


@lru_cache(maxsize=1)
def _vocabulary(path: str) -> Vocabulary:
    return tokenizer.load(Path(path))


def binarised(path: Path) -> TokenStream:
    """fairseq's ``NAME.bin``, with ``NAME.idx`` (mmap format) and ``dict.txt`` beside it.

    Source: fairseq ``indexed_dataset.py:MMapIndexedDataset``. Ids are those of the dictionary: line
    n is id n + 4.

    Raises:
        ConfigError: if a file is missing or has another format, or sizes do not agree.
    """
    index, words = path.with_suffix(".idx"), path.with_name("dict.txt")
    for file in (path, index, words):
        if not file.is_file():
            rule = f"needs {file.name} beside it"
            raise ConfigError("input", path, rule, "give the .bin of binarised data")
    sizes, type = _mmap_index(index)
    total = int(sizes.sum(dtype=np.int64))
    if total * np.dtype(type).itemsize != path.stat().st_size:
        rule = f"does not have the {total:,} tokens that {index.name} says"
        raise ConfigError("input", path, rule, "copy it again")
    lines = words.read_text("utf-8", "replace").splitlines()
    size = 4 + sum(1 for line in lines if line.strip()) + 1
    return TokenStream(Tokens([str(path)], type, np.array([0, total]), size), sizes)


def _mmap_index(index: Path) -> tuple[np.ndarray, str]:
    """Sizes of the lines in tokens, and numpy's name of the type of the ids."""
    head = len(_MMAP) + 17
    with index.open("rb") as file:
        start = file.read(head)
    if start.startswith(_OTHER[:6]) or not start.startswith(_MMAP) or len(start) < head:
        rule, remedy = "is not in fairseq's mmap format", "binarise with --dataset-impl mmap"
        raise ConfigError("input", index, rule, remedy)
    version, code, count = struct.unpack("<QBQ", start[len(_MMAP) :])
    if version != 1 or code not in _TYPES or index.stat().st_size != head + count * 12:
        raise ConfigError("input", index, "is damaged, or of another version", "copy it again")
    sizes = np.memmap(index, "<i4", "r", head, (count,))
    if count and sizes.min() < 0:
        raise ConfigError("input", index, "has lines of a negative size", "binarise it again")
    places = np.fromfile(index, "<i8", offset=head + 4 * count)
    before = np.concatenate([[0], np.cumsum(sizes[:-1], dtype=np.int64)])
    if not np.array_equal(places, before * np.dtype(_TYPES[code]).itemsize):
        rule = "names lines that are not in the order of the data"
        raise ConfigError("input", index, rule, "binarise it again")
    return sizes, _TYPES[code]
