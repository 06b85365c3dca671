"""ImageShards: colour images from shards."""

from __future__ import annotations

import io

import numpy as np

from datamodules.datasets.image_folder import ENDINGS, decode
from datamodules.shards.dataset import ShardDataset
from datamodules.shards.tar import one_of


class ImageShards(ShardDataset[np.ndarray]):
    """Images, one of each sample: its first member that is jpg, png or webp."""

    holds = "image"

    def decode(self, members: dict[str, bytes], length: int) -> np.ndarray:
        return decode(io.BytesIO(one_of(members, ENDINGS)))

    def describe(self) -> str:
        return f"{self.place}: {len(self):,} images"
