"""TextTransform: the text of a dataset as one stream of tokens, cut into blocks; hashed n-grams as
the floor of probes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.types import Batch, ProbeTask
from datamodules.datasets.probe_tasks import FixedBatches, Labelled
from datamodules.transforms import tokenizer
from datamodules.transforms.tokenizer import BOS, EOS, PAD, Vocabulary

_BINS = 2048  # of the hashed n-grams


class TextDataset(Protocol):
    """Pieces of text (paragraphs, sentences), each a string without line breaks, in reading
    order."""

    def texts(self) -> Iterable[str]: ...

    def describe(self) -> str: ...

    def labelled(self) -> list[Labelled[str]]: ...


class TextTransform:
    """Blocks of ``block`` tokens: <s>, then a cut of the stream of pieces and </s> (fairseq's break
    mode "none").

    What is left at the end and does not fill a block is not used.

    Args:
        dataset: the text.
        block: tokens of a sample, with its <s>.
        vocab_size: number of ids, as the model has them; <mask> is the last.
        tokenizer: path, see ``datamodules.transforms.tokenizer.load``; None trains a byte-level BPE
            on the dataset.
        cache: file that keeps the trained tokenizer with the run, and is read instead if it exists;
            None for none.
    """

    fill = float(PAD)
    lengths = None

    gives = "tokens"

    @classmethod
    def longest_input(cls, block: int, **_: Any) -> tuple[int, ...]:
        """(T,) of a block."""
        return (int(block),)

    def __init__(
        self,
        dataset: TextDataset,
        block: int,
        vocab_size: int,
        tokenizer: str | None,
        cache: str | None,
    ) -> None:
        self.dataset, self.block, self.vocab_size = dataset, block, vocab_size
        self.tokenizer, self.cache = tokenizer, cache

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer given, kept with the run, or trained now.

        Raises:
            ConfigError: if its size is not the model's.
        """
        given = self.tokenizer or self.cache
        if self.tokenizer or (self.cache and Path(self.cache).exists()):
            vocabulary = tokenizer.load(Path(str(given)))
            if vocabulary.size != self.vocab_size:
                rule = f"must be {vocabulary.size}, the size of {given} with <s>, <pad>, </s>, <unk> and <mask>"
                raise ConfigError(
                    "transform.vocab_size", self.vocab_size, rule, f"set it to {vocabulary.size}"
                )
            return vocabulary
        trained = tokenizer.train(self.dataset.texts(), self.vocab_size)
        if self.cache:
            Path(self.cache).parent.mkdir(parents=True, exist_ok=True)
            trained.save(self.cache)
        return Vocabulary(trained)

    @cached_property
    def tokens(self) -> np.ndarray:
        """(N,) int32, the whole text."""
        pieces = [
            np.append(ids, np.int32(EOS))
            for ids in self.vocabulary.encode(self.dataset.texts())
            if len(ids)
        ]
        stream = np.concatenate(pieces) if pieces else np.empty(0, np.int32)
        if len(stream) < self.block - 1:
            rule = f"is more than the whole text, {len(stream)} tokens"
            raise ConfigError(
                "transform.block", self.block, rule, "set a smaller block or give more text"
            )
        return stream

    def __len__(self) -> int:
        return len(self.tokens) // (self.block - 1)

    def read(self, index: int, epoch: int) -> Tensor:
        """(block,) int64 ids, the same in every epoch."""
        start = index * (self.block - 1)
        return torch.from_numpy(
            np.append(np.int64(BOS), self.tokens[start : start + self.block - 1]).astype(np.int64)
        )

    def placeholder(self, index: int) -> Tensor:
        """Never asked for: all text is in memory."""
        raise NotImplementedError

    def describe(self) -> str:
        """One line for the log."""
        kind = "given tokenizer" if self.tokenizer else "byte-level BPE trained on it"
        size = f"{len(self.tokens):,} tokens, {len(self):,} blocks of {self.block}"
        return f"{self.dataset.describe()}: {size} ({self.vocab_size:,} ids, {kind})"

    def varied(self, text: str, index: int, epoch: int) -> Tensor:
        """What fine-tuning sees of a text: (T,) ids with <s> and </s>, cut to ``block``, the same
        in every pass."""
        return self._whole(text)

    def plain(self) -> Iterator[Tensor]:
        """Every piece of text: (T,) ids with <s> and </s>, cut to ``block``."""
        yield from map(self._whole, self.dataset.texts())

    def probe_tasks(self) -> list[ProbeTask]:
        """The dataset's labels over hashed 1-3-grams as the floor."""
        return [self._task(task) for task in self.dataset.labelled()]

    def _task(self, task: Labelled[str]) -> ProbeTask:
        train, test = (FixedBatches(split, self._whole, PAD) for split in (task.train, task.test))
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

    def _whole(self, text: str) -> Tensor:
        ids = next(self.vocabulary.encode([text]))[: self.block - 2]
        return torch.from_numpy(np.concatenate([[BOS], ids, [EOS]]).astype(np.int64))


def n_grams(batch: Batch) -> Tensor:
    """(B, 2048) float32 log(1 + count) of 1-, 2- and 3-grams of tokens, hashed into bins; <s> and
    </s> left out."""
    ids, rows = batch.inputs, len(batch)
    counts = torch.zeros(rows, _BINS)
    word = (ids != BOS) & (ids != EOS) & (ids != PAD)
    for n in (1, 2, 3):
        width = ids.shape[1] - n + 1
        key, whole = torch.full((rows, width), n), torch.ones(rows, width, dtype=torch.bool)
        for i in range(n):
            key = (
                key * 1_000_003 + ids[:, i : i + width] + 1
            ) % 2_147_483_647  # a prime: products stay in 63 bits
            whole &= word[:, i : i + width]
        counts.scatter_add_(1, key % _BINS, whole.float())
    return counts.log1p()
