"""Images with odd EXIF data, of other formats than their names say, of extreme shapes."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from d2v_pretrain.errors import ConfigError
from datamodules.datasets.image_folder import decode, short_side
from datamodules.datasets.in_memory import in_memory
from datamodules.datasets.unusable import Unusable
from datamodules.transforms.vision import VisionTransform
from tests.datamodules.test_folder import images

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)


def saved(path: Path, orientation: int | None = None, **more: object) -> Path:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(path, exif=exif, **more)  # type: ignore[arg-type]
    return path


def exif_of(*entries: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block, big-endian, of entries (tag, type, count, four bytes of value)."""
    rows = b"".join(struct.pack(">HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + rows + bytes(4)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", [None, *range(10)])
def test_images_are_turned_as_pillow_turns_them(
    tmp_path: Path, ending: str, orientation: int | None
) -> None:
    file = saved(tmp_path / f"a.{ending}", orientation)
    with Image.open(file) as image:
        expected = np.array(ImageOps.exif_transpose(image).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(decode(str(file)), expected)
    with Image.open(file) as image:
        assert np.array_equal(in_memory("image", image).read(0), expected)


SIX = (0x0112, 3, 1, struct.pack(">HH", 6, 0))
ODD = {
    "signed short": exif_of(SIX, (0x011A, 8, 1, struct.pack(">hh", -5, 0))),
    "signed byte": exif_of(SIX, (0x0131, 6, 4, b"\xff\x80\x01\x02")),
    "rational of zero": exif_of(SIX, (0x011A, 5, 1, struct.pack(">I", 8))),
    "text in a number": exif_of(SIX, (0x0128, 2, 4, b"ab\xff\0")),
    "of nowhere": exif_of(SIX, (0x8769, 4, 1, struct.pack(">I", 2**31))),
    "broken off": exif_of(SIX)[:-9],
    "no TIFF": b"Exif\0\0??" + bytes(30),
    "orientation a text": exif_of((0x0112, 2, 4, b"six\0")),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ODD)
def test_exif_that_cannot_be_written_does_not_lose_the_image(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "a.jpg"
    Image.fromarray(PIXELS).save(file, exif=ODD[kind], quality=95)
    with Image.open(file) as image:
        plain = np.array(image.convert("RGB")).transpose(2, 0, 1)
    found = decode(str(file))
    turned = SIX[3] in ODD[kind] and kind != "broken off"
    expected = plain.transpose(0, 2, 1)[:, :, ::-1] if turned else plain
    assert np.array_equal(found, expected) or (kind == "broken off" and found.size == plain.size)


def test_programs_and_formats_that_pillow_would_start_are_not_opened(tmp_path: Path) -> None:
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "script.jpg").write_bytes(script)
    with Image.open(tmp_path / "script.jpg") as image:
        assert image.format == "EPS", "Pillow would open it"
    for read in (decode, short_side):
        with pytest.raises(Unusable, match="cannot identify"):
            read(str(tmp_path / "script.jpg"))
    for form in ("GIF", "BMP", "TIFF", "PPM"):  # as sets from the web have them
        Image.fromarray(PIXELS).save(tmp_path / f"{form}.tmp", form)
        (tmp_path / f"{form}.tmp").rename(tmp_path / f"{form}.png")
        assert decode(str(tmp_path / f"{form}.png")).shape == (3, 16, 24)


def test_a_declared_size_is_not_allocated(tmp_path: Path) -> None:
    """A PNG of 60,000 x 60,000 pixels by its header, whose checksum is right."""
    data = bytearray(io.BytesIO(saved(tmp_path / "a.png").read_bytes()).getvalue())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "b.png").write_bytes(data)
    dataset = images(tmp_path, max_bad_share=0.5, min_side=8)
    assert [Path(file).name for file in dataset.files] == ["a.png"]


def test_views_of_very_long_images_take_little_memory() -> None:
    settings = {"scale": (0.5, 1), "ratio": (0.75, 1.33), "jitter": 0, "flip": 0}
    settings |= {"mean": (0, 0, 0), "std": (1, 1, 1), "standardise": False, "seed": 0}
    line = np.zeros((3, 8, 60_000), np.uint8)
    line[:, :, 29_990:30_010] = 200
    dataset = in_memory("image", [line.transpose(1, 2, 0), line.transpose(2, 1, 0)])
    view = VisionTransform(dataset, 224, centre=1, **settings)  # type: ignore[arg-type]
    for turned in range(2):
        pixels = view.plain_view(dataset.read(turned))
        assert pixels.shape == (3, 224, 224) and pixels.min() > 0.7


def test_half_a_surrogate_pair_is_told() -> None:
    with pytest.raises(ConfigError, match="half of a surrogate pair"):
        in_memory("text", ["fine", "not \ud800 fine"])
