"""One decoded item: how long it is, what it holds, and what is wrong with it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from datamodules.datasets.base import RATE

# Kind of defect -> its rule, for the table.
RULES = {
    "unusable": "left out at the start: empty, too short or small, of another kind",
    "unreadable": "cannot be decoded",
    "silent": "standard deviation under 0.0001 of full scale",
    "clipped": "more than 1 in 1,000 samples at full scale",
    "constant": "one colour",
    "grey": "without colour",
    "tiny": "shorter side under half of transform.size",
    "short": "text of fewer than 8 characters",
    "same content": "decodes to what another item decodes to",
    "same name": "the path of another but for its ending, or its key in a shard",
}
_SILENT, _FULL, _CLIPPED, _SHORT = 1e-4, 0.99, 1e-3, 8
# Resampling lets clipped sound exceed 1, but not this value. A waveform that exceeds it does not
# have 1 as its full scale.
_OTHER_SCALE = 1.5


@dataclass(frozen=True)
class Seen:
    """What was found of one item.

    Args:
        length: of the item.
        unit: of the length: seconds, pixels of the shorter side, characters, tokens or steps.
        digest: hash of the decoded item.
        defects: kinds of ``RULES``.
    """

    length: float
    unit: str
    digest: bytes
    defects: tuple[str, ...]


def examine(item: np.ndarray | str | None, side: int) -> Seen | None:
    """Look at an item as its dataset stores it.

    Args:
        item: a waveform at 16 kHz (samples,), an image (3, height, width) uint8, a text, token ids
            (tokens,), a signal (channels, steps), or None if it is unreadable.
        side: of the images that training takes, in pixels; not used for other items.
    """
    if item is None:
        return None
    if isinstance(item, str):
        defects = ("short",) if len(item) < _SHORT else ()
        return Seen(len(item), "characters", _digest(item.encode()), defects)
    digest = _digest(np.ascontiguousarray(item).data, str((item.shape, item.dtype)).encode())
    if item.ndim == 3:
        return Seen(min(item.shape[1:]), "pixels of the shorter side", digest, _image(item, side))
    if np.issubdtype(item.dtype, np.integer):
        return Seen(item.shape[-1], "tokens", digest, ())
    if item.ndim == 1:
        return Seen(len(item) / RATE, "seconds", digest, _sound(item))
    return Seen(item.shape[-1], "steps", digest, ())


def _digest(*parts: bytes | memoryview) -> bytes:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(part)
    return state.digest()


def _sound(wave: np.ndarray) -> tuple[str, ...]:
    """Defects of a waveform.

    A constant offset is silence too. A sound that was scaled up to full scale reaches it at a few
    samples, a clipped one at many in a row.
    """
    if wave.std() < _SILENT:
        return ("silent",)
    size = np.abs(wave)
    full = 1.0 if size.max() < _OTHER_SCALE else size.max()
    return ("clipped",) if (size >= _FULL * full).mean() > _CLIPPED else ()


def _image(pixels: np.ndarray, side: int) -> tuple[str, ...]:
    tiny = ("tiny",) if min(pixels.shape[1:]) < side / 2 else ()
    if (pixels == pixels[:, :1, :1]).all():
        return ("constant", *tiny)
    red, green, blue = pixels.astype(np.int16)
    # JPEG makes small colour differences, of 1 or 2, out of grey.
    colour = np.abs(red - green).mean() + np.abs(green - blue).mean()
    return ("grey", *tiny) if colour < 2 else tiny
