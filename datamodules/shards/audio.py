"""AudioShards: mono waveforms at 16 kHz from shards."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from datamodules.datasets.base import RATE
from datamodules.datasets.sound import ENDINGS, MISSING, waveform
from datamodules.datasets.unusable import Unusable
from datamodules.shards.dataset import ShardDataset
from datamodules.shards.tar import one_of


class AudioShards(ShardDataset[np.ndarray]):
    """Waveforms, one of each sample: its first audio member.

    Args:
        root, max_bad_share, skipped_path, cache_folder, cache_gb, label_key, test_shards: see
            ``ShardDataset``.
        min_seconds, max_seconds: shorter and longer samples are left out and counted
            (``datamodules.prepare`` cuts long files).
    """

    holds = "waveform"

    def __init__(
        self,
        root: str | Sequence[str],
        min_seconds: float,
        max_seconds: float,
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
        self.bounds = (min_seconds * RATE, max_seconds * RATE)
        self.outside = (
            f"shorter than min_seconds={min_seconds:g} or longer than max_seconds={max_seconds:g}"
        )

    def decode(self, members: dict[str, bytes], length: int) -> np.ndarray:
        wave = waveform(io.BytesIO(one_of(members, ENDINGS)))
        if abs(len(wave) - length) > MISSING * RATE:
            raise Unusable(f"has {len(wave):,} samples at 16 kHz, and {length:,} in the index")
        return wave

    def describe(self) -> str:
        hours = self.lengths.sum(dtype=np.int64) / RATE / 3600
        return f"{self.place}: {len(self):,} utterances, {hours:,.1f} h"
