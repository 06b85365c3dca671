"""Joined: short waveforms of a dataset put together to items of about one crop."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from d2v_pretrain.rng import Use, fold_in
from datamodules.datasets.base import Dataset
from datamodules.datasets.probe_tasks import Labelled


class Joined(Dataset[np.ndarray]):
    """Groups of the waveforms of a dataset, each waveform in exactly one group.

    Which waveforms form a group depends on (lengths, longest, seed) alone. The waveforms are
    shuffled once, each shard by itself if there are shards, and put into groups of at most
    ``longest`` samples in that order. A waveform that is longer forms a group alone. Each waveform
    is normalised to zero mean and unit variance before it is joined to others, so that loud ones
    do not drown them. Labelled items are not joined.

    Args:
        dataset: mono waveforms at 16 kHz.
        longest: largest length of a group, in samples.
        seed: of the run.
    """

    holds = "waveform"

    def __init__(self, dataset: Dataset[np.ndarray], longest: int, seed: int) -> None:
        self.dataset, self.longest, self.seed = dataset, longest, seed
        self._bad: dict[int, int] = {}  # group -> number of bad items when it was read last

    @cached_property
    def _by_shard(self) -> list[list[np.ndarray]]:
        sizes = self.dataset.shard_sizes
        ends = np.cumsum(sizes).tolist()
        return [
            self._fill(np.arange(end - size, end), shard)
            for shard, (size, end) in enumerate(zip(sizes, ends, strict=True))
        ]

    def _fill(self, ids: np.ndarray, shard: int) -> list[np.ndarray]:
        """Divide the waveforms ``ids`` of a shard into groups; each group is an array of ids."""
        rng = np.random.default_rng(fold_in(self.seed, Use.JOIN, shard))
        order = ids[rng.permutation(len(ids))]
        cuts, total = [], 0
        for place, length in enumerate(self.dataset.lengths[order].tolist()):
            if place and total + length > self.longest:
                cuts.append(place)
                total = 0
            total += length
        return np.split(order, cuts) if len(order) else []

    @cached_property
    def groups(self) -> list[np.ndarray]:
        """For each group, the ids of its items in the dataset."""
        return [group for groups in self._by_shard for group in groups]

    @property
    def unjoined(self) -> Dataset[np.ndarray]:
        return self.dataset

    @property
    def shard_sizes(self) -> np.ndarray:
        return np.array([len(groups) for groups in self._by_shard])

    @property
    def checksums(self) -> np.ndarray:
        return self.dataset.checksums

    def prefetch(self, shards: Sequence[int] | np.ndarray) -> None:
        self.dataset.prefetch(shards)

    @property
    def item_count(self) -> int:
        return len(self.dataset)

    def count_items(self, index: int, usable: bool) -> tuple[int, int]:
        return len(self.groups[index]), self._bad.pop(index, 0)

    def at_hand(self) -> np.ndarray:
        """Ids of the groups of which at least one waveform can be read without a download."""
        near = np.zeros(len(self.dataset), bool)
        near[self.dataset.at_hand()] = True
        return np.flatnonzero([near[group].any() for group in self.groups])

    def __len__(self) -> int:
        return len(self.groups)

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.array([self.dataset.lengths[group].sum() for group in self.groups])

    def read(self, index: int) -> np.ndarray | None:
        """The waveforms of a group one after another, (samples,) float32. A waveform that cannot be
        read is silence; None if all of them cannot be read."""
        group = self.groups[index].tolist()
        waves = [self.dataset.read(i) for i in group]
        counts = [self.dataset.count_items(i, wave is not None) for i, wave in zip(group, waves)]
        self._bad[index] = sum(bad for _, bad in counts)
        if all(wave is None for wave in waves):
            return None
        lengths = self.dataset.lengths[self.groups[index]].tolist()
        return np.concatenate(
            [
                np.zeros(length, np.float32)
                if wave is None
                else (wave - wave.mean()) / np.sqrt(wave.var() + 1e-5)
                for wave, length in zip(waves, lengths, strict=True)
            ]
        )

    def describe(self) -> str:
        return f"{self.dataset.describe()}, joined to {len(self):,}"

    def labelled(self) -> list[Labelled[np.ndarray]]:
        """The dataset's classifications, of items that are not joined."""
        return self.dataset.labelled()
