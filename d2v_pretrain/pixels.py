"""Images of any mode and type as levels from 0 to 255, the same for training and for inference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from d2v_pretrain.errors import ConfigError

if TYPE_CHECKING:  # Pillow need not be there for images that are arrays
    from PIL.Image import Image

BRIGHTEST, BRIGHTEST_16 = 255, 65535
# Resizing may leave real numbers a little above 255; those above this are levels of 16 bits.
OVERSHOOT = 2 * BRIGHTEST


def colours(image: Image) -> Image:
    """An image of any mode as RGB: levels of 16 bits divided by 256, transparency over white.

    Pillow's own conversion would clip levels of 16 bits at 255. The modes ``I`` and ``F`` do not
    say how bright white is. In ``I`` (whole numbers) white is 255 if no level is above 255, and
    65535 otherwise; a PNG in this mode always has 16 bits. In ``F`` (real numbers) white is 1 if
    all levels lie in [0, 1], 65535 if one is above 510, and 255 otherwise.

    Raises:
        ConfigError: levels below 0 or above 65535 in mode ``I``, or NaN in mode ``F``.
    """
    if image.mode == "F":
        return _grey(_real(np.asarray(image)))
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return _grey((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode == "I":
        return _grey(eight_bits(torch.from_numpy(np.array(image))).numpy())
    if image.has_transparency_data:
        from PIL import Image as pillow

        over = image.convert("RGBA")
        return pillow.alpha_composite(pillow.new("RGBA", over.size, "white"), over).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def eight_bits(levels: Tensor) -> Tensor:
    """Whole-numbered or boolean levels of any type as uint8, in the same shape.

    Types of more than 8 bits do not say how bright white is: it is 255 if no level is above 255,
    and 65535 otherwise. True is white.

    Raises:
        ConfigError: levels below 0 or above 65535.
    """
    if levels.dtype == torch.uint8:
        return levels
    if levels.dtype == torch.bool:
        return levels.to(torch.uint8) * BRIGHTEST
    levels = levels.long()
    low, high = (int(x) for x in levels.aminmax()) if levels.numel() else (0, 0)
    if low < 0 or high > BRIGHTEST_16:
        rule = f"must be of 8 bits, 0 to {BRIGHTEST}, or of 16 bits, 0 to {BRIGHTEST_16}"
        raise ConfigError("images", f"with levels from {low} to {high}", rule, "scale them")
    return (levels >> 8 if high > BRIGHTEST else levels).to(torch.uint8)


def native(array: np.ndarray) -> Tensor:
    """An array as a tensor of the same values, whatever the order of its bytes.

    Raises:
        ConfigError: it does not hold numbers.
    """
    if array.dtype.kind not in "biuf":
        rule = "must be numbers, and the images of a batch of one size"
        raise ConfigError("images", f"of type {array.dtype}", rule)
    order = array.dtype.newbyteorder("=")
    return torch.from_numpy(np.ascontiguousarray(array, order))


def _real(levels: np.ndarray) -> np.ndarray:
    low, high = float(levels.min()), float(levels.max())
    if not np.isfinite([low, high]).all():
        raise ConfigError("images", "with NaN or infinity", "must be finite")
    if low >= 0 and high <= 1:
        levels = np.rint(levels * BRIGHTEST)
    elif high > OVERSHOOT:
        levels = levels / 256
    return levels.clip(0, BRIGHTEST).astype(np.uint8)


def _grey(levels: np.ndarray) -> Image:
    from PIL import Image as pillow

    return pillow.fromarray(levels).convert("RGB")
