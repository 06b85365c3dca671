"""AudioTransform: waveforms of a dataset, normalised, then cropped at random; log-mel features as
the floor of probes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from d2v_pretrain.rng import fold_in
from d2v_pretrain.types import Batch, ProbeTask
from datamodules.datasets.joined import Joined
from datamodules.datasets.probe_tasks import FixedBatches, Labelled

RATE = 16_000
_CROP = 2  # what the randomness is for
_PROBE_SECONDS = 10  # of an item that a probe reads; more is time without insight


class AudioDataset(Protocol):
    """Mono waveforms at 16 kHz: ``frames`` (N,) their lengths, ``read(i)`` (S,) float32, or None if
    unreadable."""

    @property
    def frames(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray | None: ...

    def describe(self) -> str: ...

    def labelled(self) -> list[Labelled[np.ndarray]]: ...


class AudioTransform:
    """Crops of at most ``crop_seconds`` of normalised waveforms, at a place that (seed, epoch,
    index) decide.

    The whole utterance is normalised before the crop, as the reference does (fairseq
    ``RawAudioDataset.postprocess``):
    a crop itself has neither zero mean nor unit variance.

    Args:
        dataset: the waveforms.
        crop_seconds: longest crop; shorter utterances stay whole and are padded in the batch.
        seed: of the run.
        join: put short clips together to about ``crop_seconds`` (``datamodules.datasets.joined``).
        crop_to_shortest: crop every row of a micro-batch to its shortest and pad none, as the
            reference does (fairseq ``RawAudioDataset.collater``).
    """

    fill = 0.0

    gives = "waveform"

    @classmethod
    def longest_input(cls, crop_seconds: float, **_: Any) -> tuple[int, ...]:
        """(S,) of the longest crop."""
        return (round(crop_seconds * RATE),)

    def __init__(
        self,
        dataset: AudioDataset,
        crop_seconds: float,
        seed: int,
        join: bool = False,
        crop_to_shortest: bool = False,
    ) -> None:
        self.crop, self.seed, self.crop_to_shortest = (
            round(crop_seconds * RATE),
            seed,
            crop_to_shortest,
        )
        self.dataset: AudioDataset = Joined(dataset, self.crop, seed) if join else dataset

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(N,) samples after the crop."""
        return np.minimum(self.dataset.frames, self.crop)

    def cut(self, ids: np.ndarray) -> int | None:
        """What the rows of a micro-batch are cropped to, from the lengths alone; None if each keeps
        its own."""
        return int(self.lengths[ids].min()) if self.crop_to_shortest else None

    def read(self, index: int, epoch: int, longest: int | None = None) -> Tensor | None:
        """(S,) float32 crop of at most ``longest`` samples, or None if the file cannot be read any
        more."""
        wave = self.dataset.read(index)
        return None if wave is None else self.varied(wave, index, epoch, longest)

    def varied(
        self, wave: np.ndarray, index: int, epoch: int, longest: int | None = None
    ) -> Tensor:
        """What training sees of a waveform in one pass: its crop, normalised."""
        crop = self.crop if longest is None else longest
        spare = len(wave) - crop
        if spare <= 0:
            return normalise(wave)
        start = int(
            np.random.default_rng(fold_in(self.seed, _CROP, epoch, index)).integers(spare + 1)
        )
        return normalise(wave)[start : start + crop]

    def placeholder(self, index: int) -> Tensor:
        """(S,) silence of the planned length."""
        return torch.zeros(int(self.lengths[index]))

    def describe(self) -> str:
        """One line for the log."""
        return f"{self.dataset.describe()}, crops of up to {self.crop / RATE:g} s"

    def plain(self) -> Iterator[Tensor | None]:
        """Every utterance, whole: (S,) normalised waveform; None for one that cannot be read."""
        for i in range(len(self.dataset)):
            wave = self.dataset.read(i)
            yield None if wave is None else normalise(wave)

    def probe_tasks(self) -> list[ProbeTask]:
        """The dataset's labels over pooled log-mel features as the floor."""
        return [self._task(task) for task in self.dataset.labelled()]

    def _task(self, task: Labelled[np.ndarray]) -> ProbeTask:
        train, test = (FixedBatches(split, _whole) for split in (task.train, task.test))
        return ProbeTask(
            task.name,
            train,
            test,
            task.classes,
            log_mel,
            "log-mel mean + std",
            task.headline,
            task.note,
        )


def normalise(wave: np.ndarray) -> Tensor:
    """(S,) float32 of zero mean and unit (biased) variance, eps 1e-5 (fairseq ``F.layer_norm`` over
    the utterance)."""
    tensor = torch.from_numpy(np.ascontiguousarray(wave, np.float32))
    return layer_norm(tensor, tensor.shape)


def _whole(wave: np.ndarray) -> Tensor:
    return normalise(wave)[: _PROBE_SECONDS * RATE]


def log_mel(batch: Batch) -> Tensor:
    """(B, 80) mean and standard deviation over time of 40 log-mel bands (25 ms every 10 ms),
    padding left out."""
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
    import torchaudio  # half a second, and only the probe needs it

    return torchaudio.transforms.MelSpectrogram(RATE, n_fft=400, hop_length=160, n_mels=40)
