"""resampled(): a waveform at 16 kHz, at a bounded cost for every sample rate."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch

from datamodules.datasets.base import RATE
from datamodules.datasets.unusable import Unusable

LEAST_RATE, MOST_RATE = 100, 1_000_000  # sample rates in Hz that are read
_MOST_NUMBERS = 1 << 21  # numbers in a kernel of torchaudio; 44.1 kHz needs 76,000
_ZEROS, _ROLLOFF = 6, 0.99  # torchaudio's defaults
_STEPS = 512  # entries of the table between two samples
_BLOCK = 1 << 21  # products that are computed at a time


def resampled(wave: np.ndarray, rate: int) -> np.ndarray:
    """A waveform (samples,) float32 at ``rate`` Hz, resampled to 16 kHz by a windowed sinc.

    torchaudio computes a kernel for each phase: 160 of 475 numbers for 44,100 Hz, but 16,000 of
    16,013 for 15,999 Hz. Where these would be more than 2,097,152 numbers, the same sinc is read
    from a table by linear interpolation, which differs by less than 0.0001 of full scale.

    Returns:
        (ceil(samples * 16,000 / rate),) float32.

    Raises:
        Unusable: if the rate is not from 100 Hz to 1 MHz.
    """
    check_rate(rate)
    if rate == RATE:
        return wave
    common = math.gcd(rate, RATE)
    taps = 2 * _width(rate) + rate // common
    if RATE // common * taps <= _MOST_NUMBERS:
        return _exact(rate)(torch.from_numpy(wave)).numpy()
    return _interpolated(wave, rate)


def check_rate(rate: int) -> None:
    """Raise ``Unusable`` for a sample rate that no recording has."""
    if not LEAST_RATE <= rate <= MOST_RATE:
        range_ = f"{LEAST_RATE:,} to {MOST_RATE:,} Hz"
        raise Unusable(f"has a sample rate of {rate:,} Hz; rates from {range_} are read")


@lru_cache(maxsize=16)
def _exact(rate: int) -> torch.nn.Module:
    """torchaudio's module; cached, because its kernel is costly."""
    import torchaudio  # imported here: it takes a while, and data at 16 kHz do not need it

    return torchaudio.transforms.Resample(rate, RATE)


def _width(rate: int) -> int:
    """How many samples of the input the sinc reaches to either side."""
    return math.ceil(_ZEROS * rate / (min(rate, RATE) * _ROLLOFF))


@lru_cache(maxsize=16)
def _table(rate: int) -> np.ndarray:
    """The windowed sinc by distance in input samples, from -(width + 1) to width + 1."""
    reach = _width(rate) + 1
    cutoff = min(rate, RATE) * _ROLLOFF / rate  # as a share of the input's rate
    t = np.linspace(-reach, reach, 2 * reach * _STEPS + 1) * cutoff
    window = np.cos(np.pi * np.clip(t, -_ZEROS, _ZEROS) / _ZEROS / 2) ** 2
    return (np.sinc(t) * window * cutoff).astype(np.float32)


def _interpolated(wave: np.ndarray, rate: int) -> np.ndarray:
    table, width = _table(rate), _width(rate)
    taps = np.arange(-width, width + 1)
    padded = np.pad(wave, (width, width + 1))
    out = np.empty(-(-len(wave) * RATE // rate), np.float32)
    for start in range(0, len(out), rows := max(1, _BLOCK // len(taps))):
        places = np.arange(start, min(start + rows, len(out))) * rate
        nearest, rest = np.divmod(places, RATE)  # the input sample before, and how far behind it
        # Place in the table of each tap's distance, width + 1 in its middle.
        at = (taps - rest[:, None] / RATE + width + 1) * _STEPS
        below = at.astype(np.int64)
        share = (at - below).astype(np.float32)
        kernel = table[below] * (1 - share) + table[below + 1] * share
        sound = padded[nearest[:, None] + taps + width]
        out[start : start + len(places)] = np.einsum("nt,nt->n", kernel, sound)
    return out
