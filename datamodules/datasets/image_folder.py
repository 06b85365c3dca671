"""ImageFolder: jpg, png and webp files of any size, grey, with alpha, CMYK or 16 bits, below a
folder."""

from __future__ import annotations

import os
from functools import cached_property
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from datamodules.datasets.labels import Item, from_folders, labelled
from datamodules.datasets.probe_tasks import Labelled
from datamodules.datasets.scan import Skipped, Unusable, scan

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


class ImageFolder:
    """Colour images. Sub-folders are classes if they look so; their test part is left out of
    pretraining.

    Args:
        root: folder, searched to any depth; ``root/train/<class>/…`` + ``root/test/<class>/…``, or
            ``root/<class>/…`` with one in five held out, give a probe.
        min_side: images with a shorter side in pixels are skipped and listed.
        max_bad_share: see ``datamodules.datasets.scan.scan``.
        skipped_path: where skipped files are listed, or None.
    """

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
        try:
            with Image.open(file) as image:  # reads the header alone
                side = min(image.size)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise Unusable(f"not readable as an image ({error})") from None
        if side < self.min_side:
            raise Unusable(f"too small: {side} pixels, min_side={self.min_side}")

    @cached_property
    def _items(self) -> list[Item]:
        return from_folders([self._below(file) for file in self.files])

    def _below(self, file: str) -> str:
        return file.removeprefix(os.path.join(self.root, ""))

    @cached_property
    def kept(self) -> list[str]:
        """The images to pretrain on."""
        held_out = {item.key for item in self._items if item.test}
        return [file for file in self.files if self._below(file) not in held_out]

    def __len__(self) -> int:
        return len(self.kept)

    def name(self, index: int) -> str:
        """The file of an image."""
        return self.kept[index]

    def read(self, index: int) -> np.ndarray | None:
        """(3, H, W) uint8, or None if the file cannot be decoded (then it is listed)."""
        return self._decode(self.kept[index])

    def _decode(self, file: str) -> np.ndarray | None:
        try:
            return decode(file)
        except Unusable as error:
            self.skipped.add(file, str(error))
            return None

    def describe(self) -> str:
        """One line for the log."""
        classes = len({item.label for item in self._items})
        return f"{self.root}: {len(self):,} of {len(self.files):,} images" + (
            f", {classes} classes" if classes else ""
        )

    def labelled(self) -> list[Labelled[np.ndarray]]:
        """The class sub-folder; [] where there are none."""
        if not self._items:
            return []
        return [labelled("folders", self._items, self._labelled, "tested on unseen images")]

    def _labelled(self, key: str) -> np.ndarray | None:
        return self._decode(os.path.join(self.root, key))


def decode(file: str | BinaryIO) -> np.ndarray:
    """(3, H, W) uint8 colours, upright; 16 bits scaled to 8, transparency over white.

    Raises:
        Unusable: if the file cannot be decoded.
    """
    try:
        with Image.open(file) as image:
            # A view, as Pillow has it: resizing is faster so, and the copy would take half as long
            # as the decoding
            ImageOps.exif_transpose(image, in_place=True)
            return np.array(colours(image)).transpose(2, 0, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Unusable(f"cannot be decoded ({error})") from None


def colours(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert(
            "RGB"
        )
    if image.has_transparency_data:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
