"""TextShards: blocks of token ids, or texts, from shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from datamodules.datasets.base import TextDataset
from datamodules.datasets.text_folder import decode, lines_of
from datamodules.datasets.unusable import Unusable
from datamodules.shards.dataset import ShardDataset
from datamodules.shards.npy import ids_of
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
            return decode(one_of(members, (".txt",)))
        ids = ids_of(one_of(members, (".npy",)))
        if len(ids) != length:
            raise Unusable(f"has {len(ids)} ids, and {length} in the index")
        if not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise Unusable(
                f"has ids {ids.min()} to {ids.max()}, and transform.vocab_size={self.vocab_size}"
            )
        return ids.astype(np.int64)

    def texts(self) -> Iterator[str]:
        """The lines of the texts that are not empty, in order."""
        return filter(None, self.lines())

    def lines(self) -> Iterator[str]:
        """The lines of the texts in order; a document ends at an empty line or with its text.

        Raises:
            ConfigError: at the end, if too many texts could not be read.
        """
        bad = 0
        for index in range(len(self)):
            text = self.read(index)
            bad += self.count_items(index, text is not None)[1]
            if text:
                yield from lines_of(text)
                yield ""
        self.check_share(bad, len(self))

    def describe(self) -> str:
        return f"{self.place}: {len(self):,} {'blocks' if self.in_tokens else 'texts'}"
