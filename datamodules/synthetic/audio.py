"""SyntheticAudio: sequences of pseudo-words for pretraining, single words for the probe."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from datamodules.datasets.base import RATE, Dataset
from datamodules.datasets.probe_tasks import Labelled, Split
from datamodules.synthetic.voices import SPEAKERS, WORDS, Voices

# Speakers of pretraining and of the probe's training items; the other five are only tested.
SEEN = 15


class SyntheticAudio(Dataset[np.ndarray]):
    """Pseudo-words by synthetic speakers; item i is a function of (seed, i).

    The ten words are five pairs with the same phones in another order, so that context is needed to
    tell them apart. A table says which words may follow which, so that a masked word can be
    predicted from its neighbours.

    Args:
        sequences: pretraining sequences of 3 to 6 words, about 2 s each.
        words: labelled single words, about 0.6 s each.
        seed: of the data, not of the run.
    """

    holds = "waveform"

    def __init__(self, sequences: int, words: int, seed: int) -> None:
        self.sequences, self.words, self.voices = sequences, words, Voices(seed)

    def __len__(self) -> int:
        return self.sequences

    @cached_property
    def _waves(self) -> list[np.ndarray]:
        return [self.voices.sequence(i, SEEN) for i in range(self.sequences)]

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.array([len(wave) for wave in self._waves])

    def read(self, index: int) -> np.ndarray:
        return self._waves[index].astype(np.float32)

    def describe(self) -> str:
        size = f"{self.sequences:,} sequences, {SEEN} speakers"
        hours = self.lengths.sum() / RATE / 3600
        return f"synthetic pseudo-words (not real speech): {size}, {hours:.1f} h"

    def labelled(self) -> list[Labelled[np.ndarray]]:
        """The word, tested on speakers that neither pretraining nor the classifier has heard."""
        spoken = [self.voices.word(i) for i in range(self.words)]
        seen, unseen = ([s for s in spoken if (s[2] < SEEN) is heard] for heard in (True, False))
        note = (
            f"{len(WORDS)} pseudo-words, labels of {SEEN} speakers, tested on "
            f"{SPEAKERS - SEEN} unseen speakers"
        )
        return [Labelled("words", _split(seen), _split(unseen), len(WORDS), note)]


def _split(spoken: list[tuple[np.ndarray, int, int]]) -> Split[np.ndarray]:
    labels = np.array([label for _, label, _ in spoken])
    return Split(lambda i: spoken[i][0].astype(np.float32), labels)
