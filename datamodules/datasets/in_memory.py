"""Datasets of items that a user has in memory: waveforms, images, texts, and arrays of any other
kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.pixels import colours, eight_bits, native
from datamodules.datasets import image_folder
from datamodules.datasets.base import RATE, Dataset, Item, TextDataset
from datamodules.datasets.resampling import resampled
from datamodules.datasets.sound import waveform
from datamodules.datasets.unusable import Unusable


class InMemory(Dataset[Item]):
    """A few items, in the order in which they were given.

    A subclass for items of another kind needs ``holds``, ``is_one`` and ``item``.

    Args:
        inputs: one item, or a sequence of them; see the subclass.
        sampling_rate: of waveforms in Hz; None for other kinds.

    Raises:
        ConfigError: nothing was given, or an item is not of this kind.
    """

    def __init__(self, inputs: Any, sampling_rate: int | None = None) -> None:
        self.rate = sampling_rate
        given = [inputs] if self.is_one(inputs) else inputs
        self.items = [self.item(each) for each in given]
        if not self.items:
            raise ConfigError("inputs", "[]", "must be at least one item")

    def is_one(self, inputs: Any) -> bool:
        """Whether this is one item and not a sequence of items."""
        raise NotImplementedError

    def item(self, given: Any) -> Item:
        """Convert an item to the form in which other datasets of this kind store it.

        Raises:
            ConfigError: it cannot be converted.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int) -> Item:
        return self.items[index]

    def describe(self) -> str:
        return f"{len(self):,} items in memory"


class Arrays(InMemory[np.ndarray]):
    """Arrays or tensors of any other kind, converted to float32: one (channels, steps) array, or a
    list of arrays."""

    holds = "array"

    def is_one(self, inputs: Any) -> bool:
        return hasattr(inputs, "ndim") and inputs.ndim == 2

    def item(self, given: Any) -> np.ndarray:
        return _array(given).astype(np.float32)


class Waveforms(InMemory[np.ndarray]):
    """Mono waveforms: one-dimensional arrays, tensors or lists of numbers, the rows of a
    (waveforms, samples) array, or paths of audio files.

    Args:
        inputs: one of them, or a list of them. Whole numbers are scaled to [-1, 1] by the range of
            their type, as audio files store them.
        sampling_rate: of the arrays in Hz, 16,000 by default. Waveforms at other rates are
            resampled. Files store their sampling rate themselves.
    """

    holds = "waveform"

    def is_one(self, inputs: Any) -> bool:
        if isinstance(inputs, str | Path):
            return True
        if hasattr(inputs, "ndim"):
            return inputs.ndim == 1
        return len(inputs) > 0 and bool(np.isscalar(inputs[0])) and not isinstance(inputs[0], str)

    def item(self, given: Any) -> np.ndarray:
        """A waveform as (samples,) float32 at 16 kHz."""
        if isinstance(given, str | Path):
            return _read(waveform, given)
        wave = _array(given)
        if wave.ndim != 1 or not len(wave):
            rule = "must be one channel of samples"
            raise ConfigError("inputs", f"of shape {wave.shape}", rule, "average the channels")
        if wave.dtype.kind == "i":
            wave = wave / -float(np.iinfo(wave.dtype).min)
        wave = wave.astype(np.float32)
        if not np.isfinite(wave).all():
            raise ConfigError("inputs", "with NaN or infinity", "must be finite")
        if self.rate in (None, RATE):
            return wave
        try:
            return resampled(wave, self.rate)
        except Unusable as error:
            raise ConfigError("sampling_rate", self.rate, str(error)) from None


class Images(InMemory[np.ndarray]):
    """Colour images: PIL images, arrays (H, W, 3) or (H, W), tensors (3, H, W), of 8 or 16 bits, or
    paths of image files; one of them, a list of them, or a batch of four dimensions."""

    holds = "image"

    def is_one(self, inputs: Any) -> bool:
        if isinstance(inputs, str | Path | Image.Image):
            return True
        return hasattr(inputs, "ndim") and inputs.ndim in (2, 3)

    def item(self, given: Any) -> np.ndarray:
        """(3, H, W) uint8."""
        if isinstance(given, str | Path):
            return _read(image_folder.decode, given)
        if isinstance(given, Image.Image):
            upright = image_folder.upright(given)
            return np.array(colours(upright)).transpose(2, 0, 1)
        pixels = _array(given)
        if pixels.dtype.kind not in "biu":
            remedy = "give grey levels from 0 to 255 as uint8"
            raise ConfigError("inputs", f"of type {pixels.dtype}", "must be 8-bit images", remedy)
        pixels = eight_bits(native(pixels)).numpy()
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[None], 3, 0)
        elif not torch.is_tensor(given):
            pixels = pixels.transpose(2, 0, 1)
        if pixels.ndim != 3 or pixels.shape[0] != 3:
            rule = "must have three channels: (H, W, 3) of an array, (3, H, W) of a tensor"
            raise ConfigError("inputs", f"of shape {tuple(given.shape)}", rule, "convert to RGB")
        return np.ascontiguousarray(pixels)


class Texts(InMemory[str], TextDataset):
    """Strings: one, or a list of them. Line breaks become spaces, since texts of datasets have
    none."""

    holds = "text"

    def is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str)

    def item(self, given: Any) -> str:
        if not isinstance(given, str):
            raise ConfigError("inputs", f"of type {type(given).__name__}", "must be strings")
        try:
            given.encode()
        except UnicodeEncodeError:
            rule = "has half of a surrogate pair, which is no character"
            raise ConfigError("inputs", ascii(given[:40]), rule, "decode the text again") from None
        return " ".join(given.splitlines())

    def texts(self) -> Iterator[str]:
        """All texts."""
        return iter(self.items)


KINDS = {kind.holds: kind for kind in (Waveforms, Images, Texts)}


def in_memory(kind: str, inputs: Any, sampling_rate: int | None = None) -> InMemory[Any]:
    """A dataset of inputs that a user gives.

    Args:
        kind: kind of the items, by the name in a transform's ``takes``. Kinds other than waveform,
            image and text give ``Arrays``.
        inputs: see the classes.
        sampling_rate: of waveforms in Hz.
    """
    made = KINDS.get(kind) or type("Arrays", (Arrays,), {"holds": kind})
    return made(inputs, sampling_rate)


def _read(decode: Callable[[str], np.ndarray], file: str | Path) -> np.ndarray:
    try:
        return decode(str(file))
    except Unusable as error:
        raise ConfigError("inputs", file, str(error)) from None


def _array(given: Any | Sequence[float]) -> np.ndarray:
    """Numbers as an array; numpy has no bfloat16."""
    if not torch.is_tensor(given):
        return np.asarray(given)
    given = given.detach().cpu()
    return (given.float() if given.dtype == torch.bfloat16 else given).numpy()
