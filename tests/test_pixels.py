"""pixels.py: images of every mode and type against levels worked out pixel by pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.pixels import colours, eight_bits, native

RAMP = np.linspace(0, 65535, 48).round().astype(np.uint16).reshape(6, 8)


def grey(image: Image.Image) -> np.ndarray:
    """The one level of each pixel of a grey image."""
    found = np.array(colours(image))
    assert found.dtype == np.uint8 and found.shape == (*image.size[::-1], 3)
    assert (found == found[..., :1]).all()
    return found[..., 0]


def sixteen(mode: str) -> Image.Image:
    """The ramp in one of Pillow's modes of 16 bits and more."""
    if mode == "I;16B":
        return Image.frombytes("I;16B", RAMP.shape[::-1], RAMP.astype(">u2").tobytes())
    types: dict[str, Any] = {"I;16": "u2", "I": "i4", "F": "f4"}
    image = Image.fromarray(RAMP.astype(types[mode]))
    assert image.mode == mode
    return image


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_levels_of_16_bits_keep_their_upper_byte(mode: str) -> None:
    assert grey(sixteen(mode)).tolist() == [[int(x) // 256 for x in row] for row in RAMP]


def test_a_dark_image_of_16_bits_stays_dark() -> None:
    dark = np.full((4, 5), 200, np.uint16)
    assert grey(Image.fromarray(dark)).max() == 0
    png = Image.fromarray(dark.astype(np.int32))
    png.format = "PNG"  # as Pillow 10 opens it
    assert grey(png).max() == 0


@pytest.mark.parametrize("kind", ["i4", "f4"])
def test_levels_of_8_bits_in_a_wide_mode_stay_as_they_are(kind: str) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(grey(Image.fromarray(levels.astype(kind))), levels)


def test_real_levels() -> None:
    levels = np.arange(256, dtype=np.float32).reshape(16, 16)
    assert np.array_equal(grey(Image.fromarray(levels / 255)), levels), "white is 1"
    over = Image.fromarray(np.array([[-3.0, 100.7, 260.0]], np.float32))
    assert grey(over).tolist() == [[0, 100, 255]], "as Pillow converts: resizing overshoots"
    assert np.array_equal(grey(over), np.array(over.convert("L")))
    with pytest.raises(ConfigError, match="images=with NaN or infinity must be finite"):
        colours(Image.fromarray(np.full((2, 2), np.nan, np.float32)))


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGB", "YCbCr", "HSV"])
def test_other_modes_are_converted_as_pillow_does(mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    assert np.array_equal(np.array(colours(image)), np.array(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_over_white(mode: str) -> None:
    generator = np.random.default_rng(0)
    opaque = generator.integers(0, 256, (7, 9, 4), dtype=np.uint8)
    image = Image.fromarray(opaque, "RGBA").convert(mode)
    found = np.array(colours(image)).astype(int)
    each = np.array(image.convert("RGBA")).astype(float)
    alpha = each[..., 3:] / 255
    assert np.abs(found - (each[..., :3] * alpha + 255 * (1 - alpha))).max() <= 1
    assert (np.array(image.convert("RGB")).astype(int) != found).any()


@pytest.mark.parametrize("kind", ["u1", "i2", "u2", ">u2", "i4", "u4", "i8", "u8"])
def test_whole_numbers_of_any_type(kind: str) -> None:
    small = np.arange(256).reshape(16, 16).astype(kind)
    assert eight_bits(native(small)).tolist() == small.tolist()
    if np.iinfo(kind).max >= 65535:
        assert eight_bits(native(RAMP.astype(kind))).tolist() == (RAMP // 256).tolist()


def test_booleans_and_what_is_no_level() -> None:
    assert eight_bits(torch.tensor([True, False])).tolist() == [255, 0]
    assert eight_bits(torch.empty(0, dtype=torch.int64)).shape == (0,)
    for wrong in ([-1, 3], [0, 65536]):
        with pytest.raises(ConfigError, match=r"images=with levels from .* must be of 8 bits"):
            eight_bits(torch.tensor(wrong))
    with pytest.raises(ConfigError, match="images=of type object must be numbers"):
        native(np.array([[1, 2], None], object))
