"""ImageFolder: jpg, png and webp files of any size and colour type, below a folder."""

from __future__ import annotations

import os
import zlib
from functools import cache, cached_property
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

from d2v_pretrain.pixels import colours
from datamodules.datasets.base import Dataset
from datamodules.datasets.labels import LabelRow, from_folders, labelled
from datamodules.datasets.probe_tasks import Labelled
from datamodules.datasets.scan import Skipped, scan
from datamodules.datasets.unusable import Unusable, reading

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
# What the content of such a file may be, whatever its name says. Pillow's other formats are left
# out: for some of them it starts other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageFolder(Dataset[np.ndarray]):
    """Colour images.

    Sub-folders that look like classes give a probe, whose test images are left out of pretraining.

    Args:
        root: folder, searched to any depth; ``root/train/<class>/...`` and
            ``root/test/<class>/...`` give a probe, and so does ``root/<class>/...``, where the
            probe tests on one image in five.
        min_side: images with a shorter side in pixels are skipped and listed.
        max_bad_share: see ``datamodules.datasets.scan.scan``.
        skipped_path: where skipped files are listed, or None.
    """

    holds = "image"

    def __init__(
        self, root: str, min_side: int, max_bad_share: float, skipped_path: str | None
    ) -> None:
        self.root, self.min_side, self.max_bad_share = root, min_side, max_bad_share
        self.skipped = Skipped(skipped_path)

    @cached_property
    def files(self) -> list[str]:
        """The usable files."""
        return list(scan(self.root, ENDINGS, self._check, self.skipped, self.max_bad_share))

    def _check(self, file: str) -> None:
        if (side := short_side(file)) < self.min_side:
            raise Unusable(f"too small: {side} pixels, min_side={self.min_side}")

    @cached_property
    def _rows(self) -> list[LabelRow]:
        return from_folders([self._below(file) for file in self.files])

    def _below(self, file: str) -> str:
        return file.removeprefix(os.path.join(self.root, ""))

    @cached_property
    def kept(self) -> list[str]:
        """The images to pretrain on."""
        held_out = {row.key for row in self._rows if row.test}
        return [file for file in self.files if self._below(file) not in held_out]

    @property
    def checksums(self) -> np.ndarray:
        """(1,) uint32 checksum of the names below the root. Images have no lengths that would tell
        another folder with as many of them."""
        names = "\0".join(map(self._below, self.kept))
        return np.array([zlib.crc32(os.fsencode(names))], np.uint32)

    def __len__(self) -> int:
        return len(self.kept)

    def name(self, index: int) -> str:
        return self.kept[index]

    def read(self, index: int) -> np.ndarray | None:
        return self._decode(self.kept[index])

    def _decode(self, file: str) -> np.ndarray | None:
        try:
            return decode(file)
        except Unusable as error:
            self.skipped.add(file, str(error))
            return None

    def describe(self) -> str:
        classes = len({row.label for row in self._rows})
        more = f", {classes} classes" if classes else ""
        return f"{self.root}: {len(self):,} of {len(self.files):,} images{more}"

    def labelled(self) -> list[Labelled[np.ndarray]]:
        """One classification, by class sub-folder; [] if there are no such folders."""
        if not self._rows:
            return []

        def read(key: str) -> np.ndarray | None:
            return self._decode(os.path.join(self.root, key))

        return [labelled("folders", self._rows, read, "tested on unseen images")]


@cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]  # AVIF may not be compiled in


def short_side(file: str) -> int:
    """The shorter side in pixels, from the header alone.

    Raises:
        Unusable: if the file is no image.
    """
    with reading("not readable as an image"), Image.open(file, formats=_formats()) as image:
        return min(image.size)


def decode(file: str | BinaryIO) -> np.ndarray:
    """(3, H, W) uint8 colours, upright; 16 bits scaled to 8, transparency over white.

    Pillow refuses images of more than 178,956,970 pixels by their header.

    Raises:
        Unusable: if the file cannot be decoded.
    """
    with reading("cannot be decoded"), Image.open(file, formats=_formats()) as image:
        # A view of Pillow's (H, W, 3) pixels: resizing it is faster than resizing a copy, and
        # copying would take half as long as decoding.
        return np.array(colours(upright(image))).transpose(2, 0, 1)


def upright(image: Image.Image) -> Image.Image:
    """The image, turned as the orientation in its EXIF data says.

    Where these data cannot be read it is not turned, as viewers do. Pillow's ``exif_transpose``
    writes them anew, which fails for values that it has read itself.
    """
    image.load()  # an image that cannot be decoded is an error, whatever its EXIF data are
    try:
        with reading("its EXIF data cannot be read"):
            turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Unusable:
        return image
    return image if turn is None else image.transpose(turn)
