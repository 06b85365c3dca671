"""Embedded audio: sequences of pseudo-words for pretraining, single words by seen and unseen
speakers for the probe."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from datamodules.datasets.probe_tasks import Labelled, Split
from datamodules.synthetic.voices import RATE, SPEAKERS, WORDS, Voices

SEEN = (
    15  # speakers of pretraining and of the probe's training items; the other five are only tested
)


class SyntheticAudio:
    """Pseudo-words by synthetic speakers; item i is a function of (seed, i), the same in every run
    and worker.

    The ten words are five pairs of the same phones in another order: a bag of frames cannot tell
    them apart, context can. Words follow one another by a table, so that a masked word can be
    guessed from its neighbours.

    Args:
        sequences: pretraining sequences of 3 to 6 words, about 2 s each.
        words: labelled single words, about 0.6 s each.
        seed: of the data, not of the run.
    """

    def __init__(self, sequences: int, words: int, seed: int) -> None:
        self.sequences, self.words, self.voices = sequences, words, Voices(seed)

    def __len__(self) -> int:
        return self.sequences

    @cached_property
    def _clips(self) -> list[np.ndarray]:
        return [self.voices.sequence(i, SEEN) for i in range(self.sequences)]

    @cached_property
    def frames(self) -> np.ndarray:
        """(N,) samples of each sequence at 16 kHz."""
        return np.array([len(clip) for clip in self._clips])

    def read(self, index: int) -> np.ndarray:
        """(S,) float32 waveform at 16 kHz."""
        return self._clips[index].astype(np.float32)

    def describe(self) -> str:
        """One line for the log."""
        hours = self.frames.sum() / RATE / 3600
        return f"synthetic pseudo-words (not real speech): {self.sequences:,} sequences, {SEEN} speakers, {hours:.1f} h"

    def labelled(self) -> list[Labelled[np.ndarray]]:
        """The word, for speakers that were never heard in pretraining or by the classifier."""
        clips = [self.voices.word(i) for i in range(self.words)]
        seen, unseen = ([c for c in clips if (c[2] < SEEN) is heard] for heard in (True, False))
        note = f"{len(WORDS)} pseudo-words, labels of {SEEN} speakers, tested on {SPEAKERS - SEEN} unseen speakers"
        return [Labelled("words", _split(seen), _split(unseen), len(WORDS), note)]


def _split(clips: list[tuple[np.ndarray, int, int]]) -> Split[np.ndarray]:
    return Split(lambda i: clips[i][0].astype(np.float32), np.array([clip[1] for clip in clips]))
