"""ImageShards: images in shards as colours of 8 bits."""

from __future__ import annotations

import io

import numpy as np

from datamodules.datasets.image_folder import ENDINGS, decode
from datamodules.shards.dataset import ShardDataset, one_of


class ImageShards(ShardDataset[np.ndarray]):
    """Images, one a sample: the first member that is jpg, png or webp."""

    def decode(self, members: dict[str, bytes], length: int) -> np.ndarray:
        """(3, H, W) uint8."""
        return decode(io.BytesIO(one_of(members, ENDINGS)))

    def describe(self) -> str:
        """One line for the log."""
        return f"{self.place}: {len(self):,} images"
