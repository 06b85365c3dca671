"""Random numbers as functions of their position: fold_in(), noise(), seed_default()."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor


class Use(IntEnum):
    """What randomness is for, in ``fold_in(seed, Use.CROP, epoch, id)``: draws for two uses differ.

    The numbers are part of every run: changing one changes the order or the crops of all of them.
    ``SHARDS`` and ``AUGMENT`` have the same number; keys of ``AUGMENT`` have one part more.
    """

    ORDER = 1
    CROP = 2
    AUGMENT = 3
    SHARDS = 3
    JOIN = 4
    PREPARE = 7


_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX1, _MIX2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def fold_in(*parts: int) -> int:
    """Hash integers into one 63-bit key: ``fold_in(seed, step, micro_batch)``.

    The finaliser of SplitMix64 (Steele et al., 2014) chained over the parts, whose order matters.
    Unlike ``hash`` it gives the same key on every machine and Python version.
    """
    state = 0
    for part in parts:
        z = (state ^ (part & _MASK64)) + _GOLDEN & _MASK64
        z = (z ^ (z >> 30)) * _MIX1 & _MASK64
        z = (z ^ (z >> 27)) * _MIX2 & _MASK64
        state = z ^ (z >> 31)
    return state >> 1


def seed_default(key: int, device: torch.device) -> None:
    """Seed the default generators of the CPU and of ``device``, from which dropout, layer drop and
    decoder noise are drawn.

    It takes about 1 us; ``torch.manual_seed`` seeds all backends and takes a hundred times as long.
    """
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(key)


def noise(key: int, ids: Tensor, clones: int, n: int) -> Tensor:
    """Uniform numbers that depend only on (key, sample id, clone, position): a counter-based
    generator.

    It uses integer tensor operations only, so CPU and GPU give the same bits, on any rank and in
    any batch.

    Args:
        key: made by ``fold_in``; different keys give independent numbers.
        ids: (B,) int64 global sample ids.
        clones: M, independent rows per sample.
        n: numbers per row.

    Returns:
        (B * M, n) float32 in [0, 1), multiples of 2^-24; row b*M + m belongs to clone m of sample
        b.
    """
    clone = torch.arange(clones, device=ids.device)
    row = _mix(_mix(ids + _signed(key))[:, None] + clone).reshape(-1, 1)
    bits = _mix(row + torch.arange(n, device=ids.device))
    return _shift(bits, 40).to(torch.float32) * 2.0**-24


def _signed(value: int) -> int:
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = x + _signed(_GOLDEN)
    x = (x ^ _shift(x, 30)) * _signed(_MIX1)
    x = (x ^ _shift(x, 27)) * _signed(_MIX2)
    return x ^ _shift(x, 31)
