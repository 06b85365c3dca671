"""Joined: short clips of a dataset put together to utterances of about one crop, each clip in
exactly one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from d2v_pretrain.rng import fold_in

_GROUPS = 4  # what the randomness is for


class Joined:
    """A dataset of groups of clips. Which clips are together is a function of (lengths, longest,
    seed) alone.

    Clips are shuffled once, within their shard where there are any, and filled in that order into
    groups of at most ``longest`` samples; a longer clip is alone. Each clip is brought to zero mean
    and unit variance first, so that loud ones do not drown the others. Labelled clips stay single.

    Args:
        clips: an ``AudioDataset`` (see ``datamodules.transforms.audio``).
        longest: samples of a group, at 16 kHz.
        seed: of the run.
    """

    def __init__(self, clips: Any, longest: int, seed: int) -> None:
        self.clips, self.longest, self.seed = clips, longest, seed

    @cached_property
    def _by_shard(self) -> list[list[np.ndarray]]:
        sizes = getattr(self.clips, "shard_sizes", [len(self.clips)])
        ends = np.cumsum(sizes).tolist()
        return [
            self._fill(np.arange(b - n, b), shard)
            for shard, (n, b) in enumerate(zip(sizes, ends, strict=True))
        ]

    def _fill(self, ids: np.ndarray, shard: int) -> list[np.ndarray]:
        order = ids[np.random.default_rng(fold_in(self.seed, _GROUPS, shard)).permutation(len(ids))]
        cuts, total = [], 0
        for place, length in enumerate(self.clips.frames[order].tolist()):
            if place and total + length > self.longest:
                cuts.append(place)
                total = 0
            total += length
        return np.split(order, cuts) if len(order) else []

    @cached_property
    def groups(self) -> list[np.ndarray]:
        """Which clips make up each utterance."""
        return [group for groups in self._by_shard for group in groups]

    @property
    def shard_sizes(self) -> np.ndarray:
        """Utterances of each shard; as if it was not there (AttributeError) where the clips are in
        none."""
        return np.array([len(groups) for groups in self._by_shard[: len(self.clips.shard_sizes)]])

    @property
    def ahead(self) -> Any:
        """The clips' own, if they have it."""
        return self.clips.ahead

    @property
    def checksums(self) -> np.ndarray:
        """The clips' own, if they have them."""
        return self.clips.checksums

    @property
    def spread_ids(self) -> Callable[[int], np.ndarray]:
        """About n utterances around the clips that can be had cheaply, if the clips say which these
        are."""
        pick = self.clips.some

        def around(n: int) -> np.ndarray:
            near = set(pick(n).tolist())
            return np.flatnonzero([not near.isdisjoint(group.tolist()) for group in self.groups])

        return around

    def __len__(self) -> int:
        return len(self.groups)

    @cached_property
    def frames(self) -> np.ndarray:
        """(N,) samples of each utterance."""
        return np.array([self.clips.frames[group].sum() for group in self.groups])

    def read(self, index: int) -> np.ndarray | None:
        """(S,) float32; silence where a clip cannot be read, None where none can."""
        waves = [self.clips.read(int(i)) for i in self.groups[index]]
        if all(wave is None for wave in waves):
            return None
        lengths = self.clips.frames[self.groups[index]].tolist()
        return np.concatenate(
            [np.zeros(n, np.float32) if w is None else _level(w) for w, n in zip(waves, lengths)]
        )

    def describe(self) -> str:
        """One line for the log."""
        return f"{self.clips.describe()}, joined to {len(self):,}"

    def labelled(self) -> list[Any]:
        """Of the single clips."""
        return self.clips.labelled()


def _level(wave: np.ndarray) -> np.ndarray:
    return (wave - wave.mean()) / np.sqrt(wave.var() + 1e-5)
