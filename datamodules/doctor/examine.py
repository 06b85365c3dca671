"""One decoded item: how long it is, what it holds, and what is wrong with it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

# Kind of defect -> the rule, for the table.
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
RATE = 16_000
_SILENT, _FULL, _CLIPPED, _SHORT = 1e-4, 0.99, 1e-3, 8
_OTHER_SCALE = 1.5  # clipped sound that is resampled goes over 1, by less than this; above it, full scale is another


@dataclass(frozen=True)
class Seen:
    """What one item is: ``length`` in seconds, pixels of the shorter side, characters or tokens; a
    ``digest`` of it."""

    length: float
    digest: bytes
    defects: tuple[str, ...]


def examine(item: np.ndarray | str | None, side: int) -> Seen | None:
    """Look at an item as its dataset stores it.

    Args:
        item: (S,) float waveform at 16 kHz | (3, H, W) uint8 image | text | (T,) token ids | None
            if unreadable.
        side: of the images that training takes, in pixels; of no account for others.
    """
    if item is None:
        return None
    if isinstance(item, str):
        return Seen(len(item), _digest(item.encode()), ("short",) if len(item) < _SHORT else ())
    digest = _digest(np.ascontiguousarray(item).data, str((item.shape, item.dtype)).encode())
    if item.ndim == 3:
        return Seen(min(item.shape[1:]), digest, _image(item, side))
    if np.issubdtype(item.dtype, np.integer):
        return Seen(len(item), digest, ())
    return Seen(len(item) / RATE, digest, _sound(item))


def _digest(*parts: bytes | memoryview) -> bytes:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(part)
    return state.digest()


def _sound(wave: np.ndarray) -> tuple[str, ...]:
    """A constant offset is silence too. A sound scaled up to full scale touches it a few times, a
    clipped one stays."""
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
    colour = (
        np.abs(red - green).mean() + np.abs(green - blue).mean()
    )  # JPEG makes colours of 1 or 2 out of grey
    return ("grey", *tiny) if colour < 2 else tiny
