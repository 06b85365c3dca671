"""TextShards: blocks of token ids, or texts, from shards."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from datamodules.datasets.base import TextDataset
from datamodules.datasets.scan import Unusable
from datamodules.shards.dataset import ShardDataset
from datamodules.shards.tar import one_of


class TextShards(ShardDataset[Any], TextDataset):
    """Rows of token ids (``npy``, as ``datamodules.prepare text`` makes them) or texts (``txt``).

    Args:
        vocab_size: number of ids, as the model has them.
        root, max_bad_share, skipped_path, cache_folder, cache_gb, label_key, test_shards: see
            ``ShardDataset``.
    """

    def __init__(
        self,
        vocab_size: int,
        root: str | Sequence[str],
        max_bad_share: float,
        skipped_path: str | None,
        cache_folder: str,
        cache_gb: float,
        label_key: str | None,
        test_shards: int,
    ) -> None:
        super().__init__(
            root, max_bad_share, skipped_path, cache_folder, cache_gb, label_key, test_shards
        )
        self.vocab_size = vocab_size

    @cached_property
    def in_tokens(self) -> bool:  # type: ignore[override]
        """Whether the first sample that can be read has a row of ids."""
        found = filter(None, map(self.members, range(len(self))))
        return any(extension.endswith("npy") for extension in next(found, ()))

    def decode(self, members: dict[str, bytes], length: int) -> np.ndarray | str:
        """The token ids as (tokens,) int64, or the text."""
        if not self.in_tokens:
            try:
                return one_of(members, (".txt",)).decode("utf-8")
            except UnicodeDecodeError as error:
                raise Unusable(str(error)) from None
        data = one_of(members, (".npy",))
        begin = 10 + int.from_bytes(data[8:10], "little")  # where the ids begin, in version 1
        try:
            shape, kind = _npy_header(data[:begin])
            ids = np.frombuffer(data, kind, offset=begin).reshape(shape)
        except (ValueError, EOFError) as error:
            raise Unusable(f"its npy cannot be read ({error})") from None
        if ids.shape != (length,) or ids.dtype.kind not in "iu":
            raise Unusable(f"is {ids.dtype} of shape {ids.shape}, and {length} ids in the index")
        if not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise Unusable(
                f"has ids {ids.min()} to {ids.max()}, and transform.vocab_size={self.vocab_size}"
            )
        return ids.astype(np.int64)

    def texts(self) -> Iterator[str]:
        """The lines of the texts that are not empty, in order."""
        return filter(None, self.lines())

    def lines(self) -> Iterator[str]:
        """The lines of the texts in order; a document ends at an empty line or with its text."""
        for text in filter(None, map(self.read, range(len(self)))):
            yield from map(str.strip, text.splitlines())
            yield ""

    def describe(self) -> str:
        return f"{self.place}: {len(self):,} {'blocks' if self.in_tokens else 'texts'}"


@lru_cache
def _npy_header(head: bytes) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type from the first bytes of an ``npy``.

    Cached, because most blocks begin alike and numpy takes 20 microseconds to parse them.
    """
    file = io.BytesIO(head)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("of another version than 1.0")
    shape, _, kind = np.lib.format.read_array_header_1_0(file)
    if kind.hasobject:
        raise ValueError("holds objects")
    return shape, kind
