"""TextTransform: blocks of one stream of tokens; TokenBlocks: blocks that shards hold."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d2v_pretrain.atomic_files import atomic, set_aside
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.types import BOS, EOS, PAD, Batch
from datamodules.datasets.base import Numbered, TextDataset
from datamodules.datasets.unusable import Unusable, reading
from datamodules.shards.text import TextShards
from datamodules.transforms import tokenizer
from datamodules.transforms.base import Transform
from datamodules.transforms.blocks import anywhere, limited, whole_lines
from datamodules.transforms.n_grams import n_grams
from datamodules.transforms.tokenizer import Vocabulary

BREAK_MODES = ("none", "complete", "complete_doc")


class TextTransform(Transform[Any]):
    """Blocks of at most ``block`` tokens: <s>, then a piece of the stream of texts, which have a
    </s> behind each.

    Called with a dataset of token ids (``dataset.in_tokens``), the class makes its subclass
    ``TokenBlocks`` instead.

    Args:
        dataset: the texts.
        block: tokens of a sample, with its <s>.
        vocab_size: number of ids, as the model has them; <mask> is the last.
        tokenizer: path, see ``datamodules.transforms.tokenizer.load``; None trains a byte-level BPE
            on the dataset.
        cache: file for the trained tokenizer. If it exists, the tokenizer is read from it and none
            is trained. None writes no file.
        break_mode: where the stream is cut into blocks, as in fairseq. ``none``: anywhere, so that
            all blocks are full; tokens at the end that do not fill a block are not used.
            ``complete``: between texts, and inside a text only if it is longer than a block.
            ``complete_doc``: also where a document ends (``TextDataset.lines``).
    """

    takes = "text"
    gives = "tokens"
    fill = float(PAD)
    raw_baseline_name = "hashed 1-3-grams"
    dataset: TextDataset

    def __new__(cls, dataset: TextDataset | None = None, *_: Any, **__: Any) -> TextTransform:
        stored = cls is TextTransform and isinstance(dataset, TextDataset) and dataset.in_tokens
        return super().__new__(TokenBlocks if stored else cls)

    def __init__(
        self,
        dataset: TextDataset,
        block: int,
        vocab_size: int,
        tokenizer: str | None,
        cache: str | None,
        break_mode: str = "none",
    ) -> None:
        super().__init__(dataset)
        if break_mode not in BREAK_MODES:
            known = ", ".join(BREAK_MODES)
            raise ConfigError("transform.break_mode", break_mode, f"must be one of {known}")
        self.block, self.vocab_size, self.tokenizer, self.cache = (
            block,
            vocab_size,
            tokenizer,
            cache,
        )
        self.break_mode, self.by_length = break_mode, break_mode != "none"

    @classmethod
    def longest_input(cls, block: int, **_: Any) -> tuple[int, ...]:
        """The length of a block in tokens, (block,)."""
        return (int(block),)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer: read from ``tokenizer`` or ``cache``, else trained now.

        Raises:
            ConfigError: if it does not have as many ids as the model.
        """
        given = self.tokenizer or self.cache
        vocabulary = self._stored()
        if vocabulary is not None:
            if vocabulary.size != self.vocab_size:
                rule = f"must be {vocabulary.size}, the size of {given} with its five special ids"
                remedy = f"set it to {vocabulary.size}"
                raise ConfigError("transform.vocab_size", self.vocab_size, rule, remedy)
            return vocabulary
        trained = tokenizer.train(self.dataset.texts(), self.vocab_size)
        if self.cache:
            with atomic(Path(self.cache)) as temporary:
                trained.save(str(temporary))
        return Vocabulary(trained)

    def _stored(self) -> Vocabulary | None:
        """The tokenizer in ``tokenizer`` or ``cache``, if there is one. A damaged one in ``cache``
        is set aside: the same data train the same one again."""
        if self.tokenizer:
            return tokenizer.load(Path(self.tokenizer))
        try:
            if self.cache and Path(self.cache).exists():
                return tokenizer.load(Path(self.cache))
        except ConfigError as error:
            print(f"{error} It is set aside, and trained again.", file=sys.stderr)
            set_aside(Path(self.cache))  # type: ignore[arg-type]
        return None

    @cached_property
    def tokens(self) -> np.ndarray:
        """All token ids of the dataset as one int32 array."""
        return self._stream[0]

    @cached_property
    def _stream(self) -> tuple[np.ndarray, np.ndarray]:
        """``tokens``, and how many of them each text has with its </s>. Between documents stands a
        lone </s>, if they are kept apart."""
        apart = self.break_mode == "complete_doc"
        encoded = self.vocabulary.encode(self.dataset.lines() if apart else self.dataset.texts())
        parts = [np.append(ids, np.int32(EOS)) for ids in encoded if apart or len(ids)]
        stream = np.concatenate(parts) if parts else np.empty(0, np.int32)
        if not self.by_length and len(stream) < self.block - 1:
            rule = f"is more than the whole text, {len(stream)} tokens"
            raise ConfigError(
                "transform.block", self.block, rule, "set a smaller block or give more text"
            )
        return stream, np.array([len(part) for part in parts], np.int64)

    @cached_property
    def blocks(self) -> np.ndarray:
        """The first token and the end in ``tokens`` of each block, without its <s>: (blocks, 2)."""
        (stream, sizes), room = self._stream, self.block - 1
        if not self.by_length:
            return anywhere(len(stream), room)[: len(stream) // room]
        return limited(whole_lines([[sizes]], room, self.break_mode == "complete_doc"), room)

    @property
    def lengths(self) -> np.ndarray | None:
        """(blocks,) number of tokens in each block, its <s> included; None if all are full."""
        return self.blocks[:, 1] - self.blocks[:, 0] + 1 if self.by_length else None

    @property
    def numbered(self) -> Numbered:
        """The blocks themselves: they are not the dataset's items."""
        return self

    @property
    def checksums(self) -> np.ndarray:
        return self.dataset.checksums

    def __len__(self) -> int:
        return len(self.blocks)

    def read(self, index: int, epoch: int, longest: int | None = None) -> Tensor | None:
        """The int64 token ids of a block; see ``Samples.read``. Neither the epoch nor ``longest``
        matters."""
        start, end = self.blocks[index]
        ids = np.append(np.int64(BOS), self.tokens[start:end])
        return torch.from_numpy(ids.astype(np.int64))

    def placeholder(self, length: int | None) -> Tensor:
        """As many ids of <s> as the sample has tokens."""
        return torch.full((self.block if length is None else length,), BOS)

    def describe(self) -> str:
        kind = "given tokenizer" if self.tokenizer else "byte-level BPE trained on it"
        most = "up to " if self.by_length else ""
        size = f"{len(self.tokens):,} tokens, {len(self):,} blocks of {most}{self.block}"
        return f"{self.dataset.describe()}: {size} ({self.vocab_size:,} ids, {kind})"

    def train_view(self, item: Any, index: int, epoch: int, longest: int | None = None) -> Tensor:
        """What fine-tuning sees of a text, the same in every epoch."""
        return self.plain_view(item)

    def plain_view(self, item: Any) -> Tensor:
        """(tokens,) int64 ids of a text with <s> and </s>, cut to ``block`` tokens."""
        ids = next(self.vocabulary.encode([item]))[: self.block - 2]
        return torch.from_numpy(np.concatenate([[BOS], ids, [EOS]]).astype(np.int64))

    def plain(self) -> Iterator[Tensor | None]:
        yield from map(self.plain_view, self.dataset.texts())

    def raw_baseline(self, batch: Batch) -> Tensor:
        return n_grams(batch)


class TokenBlocks(TextTransform):
    """Blocks of token ids, each taken from the shards as it is; nothing is cut or joined.

    Args:
        dataset: the shards.
        block: largest number of tokens that the model takes.
        vocab_size: number of ids, as the model has them.
        tokenizer: path, see ``datamodules.transforms.tokenizer.load``; None for the folder
            ``tokenizer`` beside the shards.
        cache: not used, for there is nothing to train.
        break_mode: other than ``none``, micro-batches are made of blocks sorted by length. The
            blocks stay as they were prepared (``break_mode=`` of ``datamodules.prepare text``).

    Raises:
        ConfigError: if a block is longer than ``block``, or the shards were made with another
            number of ids than ``vocab_size``.
    """

    dataset: TextShards

    def __init__(
        self,
        dataset: TextShards,
        block: int,
        vocab_size: int,
        tokenizer: str | None,
        cache: str | None = None,
        break_mode: str = "none",
    ) -> None:
        beside = dataset.folder / "tokenizer" if dataset.folder else None
        given = tokenizer or (str(beside) if beside else None)
        super().__init__(dataset, block, vocab_size, given, cache, break_mode)
        if (longest := int(dataset.lengths.max())) > block:
            rule = f"is less than the blocks in the shards, {longest} tokens"
            raise ConfigError("transform.block", block, rule, f"set it to {longest}")
        if (size := self._stored_size()) not in (None, vocab_size):
            rule = f"must be {size}, what the shards were made with"
            raise ConfigError("transform.vocab_size", vocab_size, rule, f"set it to {size}")

    def _stored_size(self) -> int | None:
        """The number of ids that the shards were made with, by their manifest or the tokenizer
        beside them; None if there is neither."""
        if self.dataset.folder is not None:
            with suppress(Unusable), reading("is no manifest of tokens"):
                manifest = (self.dataset.folder / "manifest.json").read_text("utf-8")
                return int(json.loads(manifest)["vocab_size"])
        known = self.tokenizer is not None and Path(self.tokenizer).exists()
        return self.vocabulary.size if known else None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer that made the ids; training does not need it.

        Raises:
            ConfigError: if there is no tokenizer beside the shards and none is named.
        """
        if self.tokenizer is None:
            rule, remedy = "is not beside the shards", "name the one they were made with"
            raise ConfigError("transform.tokenizer", None, rule, remedy)
        return tokenizer.load(Path(self.tokenizer))

    @property
    def numbered(self) -> Numbered:
        return self.dataset

    @property
    def lengths(self) -> np.ndarray:
        """(blocks,) number of tokens in each block."""
        return self.dataset.lengths

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int, epoch: int, longest: int | None = None) -> Tensor | None:
        """The token ids of a block as int64; see ``Samples.read``. Blocks are never augmented."""
        ids = self.dataset.read(index)
        return None if ids is None else self.plain_view(ids)

    def plain_view(self, item: Any) -> Tensor:
        return torch.from_numpy(item)

    def plain(self) -> Iterator[Tensor | None]:
        return (self.read(index, 0) for index in range(len(self)))

    def describe(self) -> str:
        tokens = int(self.lengths.sum(dtype=np.int64))
        return f"{self.dataset.describe()}, {tokens:,} tokens ({self.vocab_size:,} ids)"
