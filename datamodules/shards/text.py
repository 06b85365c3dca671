"""TextShards: blocks of token ids in shards; TokenBlocks: the transform of them; or shards of plain
text."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.types import ProbeTask
from datamodules.datasets.probe_tasks import FixedBatches, Labelled
from datamodules.datasets.scan import Unusable
from datamodules.shards.dataset import ShardDataset, one_of, sample_of
from datamodules.shards.names import is_remote
from datamodules.transforms.text import TextDataset, TextTransform, n_grams
from datamodules.transforms.tokenizer import BOS, PAD, Vocabulary, load


class TextShards(ShardDataset[np.ndarray]):
    """Rows of token ids, one a sample (``npy``, as ``datamodules.prepare text`` makes them), or
    texts (``txt``).

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
    def in_tokens(self) -> bool:
        """Whether the first sample that can be read is a row of ids."""
        found = filter(None, map(self._members, range(len(self))))
        return any(extension.endswith("npy") for extension in next(found, ()))

    def _members(self, index: int) -> dict[str, bytes]:
        """By extension; {} if they cannot be read."""
        try:
            return sample_of(self._span(*self._place(index)))[1]
        except Unusable:
            return {}

    def decode(self, members: dict[str, bytes], length: int) -> np.ndarray:
        """(T,) int64 ids."""
        data = one_of(members, (".npy",))
        begin = 10 + int.from_bytes(data[8:10], "little")  # as version 1 has it
        try:
            shape, kind = _header(data[:begin])
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
        """The lines of the ``txt`` members, in order."""
        for index in range(len(self)):
            self.reads += 1
            try:
                text = one_of(self._members(index), (".txt",)).decode("utf-8")
            except (Unusable, UnicodeDecodeError) as error:
                self._note(self.name(index), str(error))
                continue
            yield from filter(None, map(str.strip, text.splitlines()))

    def describe(self) -> str:
        """One line for the log."""
        return f"{self.place}: {len(self):,} {'blocks' if self.in_tokens else 'texts'}"


@lru_cache
def _header(head: bytes) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type from what an ``npy`` begins with: most blocks begin alike, and numpy takes 20
    us to parse it."""
    file = io.BytesIO(head)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("of another version than 1.0")
    shape, _, kind = np.lib.format.read_array_header_1_0(file)
    if kind.hasobject:
        raise ValueError("holds objects")
    return shape, kind


class TokenBlocks:
    """Blocks as they are in the shards; nothing is cut or joined.

    Args:
        dataset: the shards.
        block: the longest that the model takes.
        vocab_size: number of ids, as the model has them.
        tokenizer: path, see ``datamodules.transforms.tokenizer.load``; None for the folder
            ``tokenizer`` beside the shards.

    Raises:
        ConfigError: if blocks are longer, or ids more, than the model takes.
    """

    fill = float(PAD)

    def __init__(
        self, dataset: TextShards, block: int, vocab_size: int, tokenizer: str | None
    ) -> None:
        self.dataset, self.block, self.vocab_size = dataset, block, vocab_size
        self.beside = None if is_remote(dataset.names[0]) else Path(dataset.names[0]).parent
        self.tokenizer = Path(tokenizer) if tokenizer else self.beside and self.beside / "tokenizer"
        if (longest := int(dataset.lengths.max())) > block:
            rule = f"is less than the blocks in the shards, {longest} tokens"
            raise ConfigError("transform.block", block, rule, f"set it to {longest}")
        if (size := self._size()) not in (None, vocab_size):
            rule = f"must be {size}, what the shards were made with"
            raise ConfigError("transform.vocab_size", vocab_size, rule, f"set it to {size}")

    def _size(self) -> int | None:
        """Number of ids, if anything beside the shards tells it."""
        manifest = self.beside and self.beside / "manifest.json"
        with suppress(OSError, ValueError, KeyError, TypeError):
            return int(json.loads(manifest.read_text("utf-8"))["vocab_size"]) if manifest else None
        return self.vocabulary.size if self.tokenizer and self.tokenizer.exists() else None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer that made the ids; training does not need it.

        Raises:
            ConfigError: if it is not known.
        """
        if self.tokenizer is None:
            raise ConfigError(
                "transform.tokenizer",
                None,
                "is not beside the shards",
                "name the one they were made with",
            )
        return load(self.tokenizer)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens."""
        return self.dataset.lengths

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int, epoch: int) -> Tensor | None:
        """(T,) int64 ids, the same in every epoch, or None."""
        ids = self.dataset.read(index)
        return None if ids is None else torch.from_numpy(ids)

    def placeholder(self, index: int) -> Tensor:
        """(T,) of <s>."""
        return torch.full((int(self.lengths[index]),), BOS)

    def describe(self) -> str:
        """One line for the log."""
        tokens = int(self.lengths.sum(dtype=np.int64))
        return f"{self.dataset.describe()}, {tokens:,} tokens ({self.vocab_size:,} ids)"

    def plain(self) -> Iterator[Tensor | None]:
        """Every block, in order."""
        return (self.read(i, 0) for i in range(len(self)))

    def probe_tasks(self) -> list[ProbeTask]:
        """The dataset's labels over hashed 1-3-grams as the floor."""
        return [self._task(task) for task in self.dataset.labelled()]

    def _task(self, task: Labelled[np.ndarray]) -> ProbeTask:
        train, test = (
            FixedBatches(split, torch.from_numpy, PAD) for split in (task.train, task.test)
        )
        return ProbeTask(
            task.name,
            train,
            test,
            task.classes,
            n_grams,
            "hashed 1-3-grams",
            task.headline,
            task.note,
        )


def text_transform(
    dataset: TextDataset | TextShards,
    block: int,
    vocab_size: int,
    tokenizer: str | None,
    cache: str | None,
) -> TextTransform | TokenBlocks:
    """``TokenBlocks`` of shards that hold token ids, ``TextTransform`` of all other text; arguments
    as these have them."""
    if isinstance(dataset, TextShards) and dataset.in_tokens:
        return TokenBlocks(dataset, block, vocab_size, tokenizer)
    return TextTransform(dataset, block, vocab_size, tokenizer, cache)  # type: ignore[arg-type]


text_transform.gives = TextTransform.gives  # type: ignore[attr-defined]
text_transform.longest_input = TextTransform.longest_input  # type: ignore[attr-defined]
