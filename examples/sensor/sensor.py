"""Multichannel time series as a modality: a dataset, a transform, a stem and a mask policy."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from d2v_pretrain.masking.base import MaskPolicy, row_lengths, within
from d2v_pretrain.models.stems.base import Stem, valid_positions
from d2v_pretrain.rng import fold_in, noise
from d2v_pretrain.types import Batch, Mask, Tokens
from datamodules.datasets.base import Dataset
from datamodules.datasets.probe_tasks import Labelled, Split
from datamodules.transforms.base import CropTransform

GESTURES = [(2, 3, 5), (3, 5, 2), (5, 2, 3), (2, 5, 3), (3, 2, 5), (5, 3, 2)]


class SensorDataset(Dataset[np.ndarray]):
    """Made-up accelerometer recordings (3, 240): a gesture is the order of three frequencies."""

    holds = "sensor"

    def __init__(self, items: int, train: int, test: int) -> None:
        self.items, self.train, self.test = items, train, test

    def __len__(self) -> int:
        return self.items

    def read(self, index: int) -> np.ndarray:
        rng = np.random.default_rng(fold_in(index))
        rates = np.repeat(GESTURES[index % 6], 80) * rng.uniform(0.8, 1.2)
        angle = np.cumsum(rates) * 2 * np.pi / 80 + rng.uniform(0, 6.28, (3, 1))
        return rng.uniform(0.5, 1.5, (3, 1)) * np.sin(angle) + rng.normal(0, 0.5, (3, 240))

    def describe(self) -> str:
        return f"made-up accelerometer data: {self.items:,} recordings of 6 gestures"

    def labelled(self) -> list[Labelled[np.ndarray]]:
        def split(ids: np.ndarray) -> Split[np.ndarray]:
            return Split(lambda i: self.read(int(ids[i])), ids % 6)

        ids = np.arange(self.items, self.items + self.train + self.test)
        parts = split(ids[: self.train]), split(ids[self.train :])
        return [Labelled("gestures", *parts, 6, "tested on unseen recordings")]


class SensorTransform(CropTransform):
    """Random crops of recordings, each channel normalised by itself."""

    takes = gives = "sensor"

    def __init__(self, dataset: SensorDataset, channels: int, crop: int, seed: int) -> None:
        super().__init__(dataset, crop, seed)

    @classmethod
    def longest_input(cls, **settings: Any) -> tuple[int, ...]:
        return settings["channels"], settings["crop"]


class SensorStem(Stem):
    """(B, C, S) inputs: windows of ``patch`` steps of all channels, each through one linear map."""

    reads = "sensor"

    def __init__(self, width: int, channels: int, patch: int) -> None:
        super().__init__()
        self.patch, self.norm = patch, nn.LayerNorm(width)
        self.projection = nn.Conv1d(channels, width, patch, patch)

    def forward(self, batch: Batch) -> Tokens:
        x = self.norm(self.projection(batch.inputs).transpose(1, 2))  # (B, T, D)
        lengths = self.token_lengths(batch.lengths)
        return Tokens(x, x.shape[1:2], valid_positions(lengths, x.shape[1], x.device))

    def grid(self, shape: torch.Size) -> tuple[int, ...]:
        return (shape[-1] // self.patch,)

    def token_lengths(self, lengths: Tensor | None) -> Tensor | None:
        return None if lengths is None else lengths // self.patch


@dataclass(frozen=True)
class WindowMask(MaskPolicy):
    """One window of ``prob`` of the tokens, at a random place of each row."""

    prob: float

    def __call__(self, key: int, ids: Tensor, clones: int, grid: Any, lengths: Any = None) -> Mask:
        rows = row_lengths(ids, clones, grid, lengths)
        size = (rows * self.prob).long()
        start = (noise(key, ids, clones, 1)[:, 0] * (rows - size + 1)).long()
        return Mask.of(within(start + size, grid[0]) & ~within(start, grid[0]))
