"""AudioTransform: random crops of normalised waveforms; log_mel(): the baseline of probes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from d2v_pretrain.types import Batch
from datamodules.datasets.base import RATE, Dataset
from datamodules.datasets.joined import Joined
from datamodules.transforms.base import CropTransform

_PROBE_SECONDS = 10  # probes read the beginning of an item; more takes time and changes little


class AudioTransform(CropTransform):
    """Crops of at most ``crop_seconds`` of mono waveforms at 16 kHz.

    Args:
        dataset: the waveforms.
        crop_seconds: longest crop; shorter items are not cropped, but padded in the batch.
        seed: of the run.
        join: join short items to items of about ``crop_seconds``, see ``Joined``.
        crop_to_shortest: see ``CropTransform``.
    """

    takes = gives = "waveform"
    raw_baseline_name = "log-mel mean + std"

    def __init__(
        self,
        dataset: Dataset[np.ndarray],
        crop_seconds: float,
        seed: int,
        join: bool = False,
        crop_to_shortest: bool = False,
    ) -> None:
        self.check_dataset(type(dataset))
        (crop,) = self.longest_input(crop_seconds)
        super().__init__(
            Joined(dataset, crop, seed) if join else dataset, crop, seed, crop_to_shortest
        )

    @classmethod
    def longest_input(cls, crop_seconds: float, **_: Any) -> tuple[int, ...]:
        """The number of samples of the longest crop, as a tuple."""
        return (round(crop_seconds * RATE),)

    def probe_view(self, item: np.ndarray) -> Tensor:
        return self.plain_view(item)[: _PROBE_SECONDS * RATE]

    def placeholder(self, length: int | None) -> Tensor:
        """Silence."""
        return torch.zeros(self.crop if length is None else length)

    def raw_baseline(self, batch: Batch) -> Tensor:
        return log_mel(batch)

    def describe(self) -> str:
        return f"{self.dataset.describe()}, crops of up to {self.crop / RATE:g} s"


def log_mel(batch: Batch) -> Tensor:
    """Mean and standard deviation over time of 40 log-mel bands, without padding: (waveforms, 80).

    Windows are 25 ms long, one every 10 ms.
    """
    frames = _mel()(batch.inputs).clamp_min(1e-6).log().transpose(1, 2)  # (B, T, 40)
    samples = (
        torch.full((len(batch),), batch.inputs.shape[1]) if batch.lengths is None else batch.lengths
    )
    valid = torch.arange(frames.shape[1]) < (samples // 160 + 1)[:, None]
    weight = (valid / valid.sum(1, keepdim=True))[..., None]
    mean = (frames * weight).sum(1)
    variance = ((frames - mean[:, None]) ** 2 * weight).sum(1)
    return torch.cat([mean, variance.clamp_min(0).sqrt()], 1)


@lru_cache(maxsize=1)
def _mel() -> nn.Module:
    import torchaudio  # imported here: it takes half a second, and only probes need it

    return torchaudio.transforms.MelSpectrogram(RATE, n_fft=400, hop_length=160, n_mels=40)
