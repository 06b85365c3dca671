"""Dataset: what every dataset offers, with defaults; RATE, the sample rate of all waveforms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from datamodules.datasets.probe_tasks import Labelled

RATE = 16_000  # samples per second
Item = TypeVar("Item")


class Numbered(ABC):
    """N items or samples with the ids 0 to N - 1, and how they are stored.

    The defaults are for data that are not in shards.
    """

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def shard_sizes(self) -> Sequence[int] | np.ndarray:
        """(shards,) number of items in each shard. The ids in a shard are consecutive."""
        return [len(self)]

    @property
    def checksums(self) -> np.ndarray:
        """(shards,) uint32 checksums of the shards, a part of the fingerprint of a run's data."""
        return np.empty(0, np.uint32)

    def prefetch(self, shards: Sequence[int] | np.ndarray) -> None:
        """Start to download these shards. Called before their items are read."""
        return

    def at_hand(self) -> np.ndarray:
        """Ids of items that can be read without downloading more than a few shards."""
        return np.arange(len(self))

    def spread_ids(self, n: int) -> np.ndarray:
        """(n,) ids spread evenly over the items that ``at_hand`` gives, for measurements on a
        sample."""
        ids = self.at_hand()
        return ids[np.linspace(0, len(ids) - 1, n).astype(np.int64)]


class Dataset(Numbered, Generic[Item]):
    """Items of one kind, as they are stored: no crop, no augmentation.

    A new dataset needs ``holds``, ``__len__``, ``read`` and ``describe``; ``labelled`` where it has
    classes.

    Attributes:
        holds: what an item is: "waveform" ((samples,) float32, mono, 16 kHz), "image" ((3, H, W)
            uint8), "text" (str), or a word of your own that a transform names in ``takes``. Items
            that a user has in memory are "array", which every transform accepts.
    """

    holds: ClassVar[str]

    @abstractmethod
    def read(self, index: int) -> Item | None:
        """Item ``index``, or None if it cannot be read (the dataset reports why)."""

    @abstractmethod
    def describe(self) -> str:
        """The dataset and its size in one line, for the log."""

    def name(self, index: int) -> str:
        """The name of an item in lists and messages, such as its file."""
        return str(index)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(N,) length of each of the N items along its last axis.

        The default reads every item once; override it where lengths are known. An item that cannot
        be read has length 1. Transforms of images and texts do not ask for lengths.
        """
        items: Iterator[Any] = map(self.read, range(len(self)))
        return np.array([1 if item is None else item.shape[-1] for item in items])

    @property
    def unjoined(self) -> Dataset[Item]:
        """The dataset before its items were joined (see ``Joined``); for other datasets itself."""
        return self

    def labelled(self) -> list[Labelled[Item]]:
        """Classifications of (some of) the items, for probes and fine-tuning."""
        return []


class TextDataset(Dataset[str]):
    """Texts (paragraphs, sentences) without line breaks, in reading order.

    A new text dataset needs ``texts`` and ``describe``. ``read`` takes texts by number from a list
    in memory; only tools call it, not training.

    Attributes:
        in_tokens: whether the items are arrays of token ids instead of texts.
    """

    holds = "text"
    in_tokens = False

    @abstractmethod
    def texts(self) -> Iterable[str]:
        """All texts."""

    def lines(self) -> Iterable[str]:
        """All texts, and an empty one where a document ends. Here each text is a document; a
        dataset of lines overrides this."""
        for text in self.texts():
            yield from (text, "")

    @cached_property
    def _list(self) -> list[str]:
        return list(self.texts())

    def __len__(self) -> int:
        return len(self._list)

    def read(self, index: int) -> str | None:
        return self._list[index]
