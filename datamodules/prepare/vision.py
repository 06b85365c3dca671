"""Makes samples of image files: the bytes of the file, or a JPEG that is scaled down; classes are
read from the names of folders."""

from __future__ import annotations

import io
import json
import os
import sys
from functools import partial
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from PIL import Image

from datamodules.datasets.image_folder import ImageFolder, decode, short_side
from datamodules.datasets.labels import from_folders
from datamodules.prepare.output import Output
from datamodules.prepare.packing import Plan, Reasons, arranged, below, bytes_of, cut, source_of
from datamodules.prepare.settings import Vision
from datamodules.shards.tar import Sample, tar_bytes

_JPEG = 0.35  # bytes per pixel at quality 90, about


class ImageItem(NamedTuple):
    """An image file, which becomes a sample.

    Args:
        file: path of the image.
        name: path below the input.
        label: number of its class; None if folders are no classes.
    """

    file: str
    name: str
    label: int | None


def plan(settings: Vision, _: Output) -> Plan:
    """Which image goes to which shard."""
    folder = ImageFolder(settings.input, settings.min_side, settings.max_bad_share, None)
    folder.skipped = reasons = Reasons(settings.input)
    names = {file: below(file, settings.input) for file in folder.files}
    sizes = {file: os.path.getsize(file) for file in names}
    rows = from_folders([name.replace("/", os.sep) for name in names.values()])
    tested = {row.key.split(os.sep)[0] for row in rows if row.test and row.key.count(os.sep) > 1}
    if tested:
        folders = ", ".join(sorted(tested))
        print(f"{folders} is packed too; input=…/train leaves it out", file=sys.stderr)
    classes = sorted({row.label for row in rows})
    labels = {row.key.replace(os.sep, "/"): classes.index(row.label) for row in rows}
    items = [ImageItem(file, name, labels.get(name)) for file, name in names.items()]
    items = [items[i] for i in arranged(len(items), settings)]
    # The estimated size of each sample in the tar.
    most = settings.short_side**2 * 4 / 3 * _JPEG if settings.short_side else float("inf")
    made = np.array(
        [tar_bytes(int(min(sizes[one.file], most)), len(one.name) + 40, 4) for one in items]
    )
    return Plan(
        items,
        cut(made, settings),
        partial(
            sample, smallest=settings.short_side, quality=settings.quality, check=settings.check
        ),
        attrgetter("name"),
        float(made.sum()),
        source_of([(names[file], size) for file, size in sizes.items()]),
        {"unit": "images", "classes": classes},
        reasons.reasons,
    )


def sample(item: ImageItem, key: str, smallest: int | None, quality: int, check: str) -> Sample:
    """An item as a sample of the image, ``json`` and, if it has a class, ``cls``.

    The ``json`` has the name of the file, ``cls`` the number of the class.

    Args:
        item: the image.
        key: of the sample.
        smallest: images with a longer short side, in pixels, are scaled down to this one; None
            keeps the bytes of all images.
        quality: of the JPEG of a reduced image.
        check: "decode" to decode images whose bytes are kept.

    Raises:
        Unusable: if it cannot be decoded.
    """
    extension, data = os.path.splitext(item.file)[1][1:].lower(), bytes_of(item.file)
    if smallest and short_side(item.file) > smallest:
        extension, data = "jpg", smaller(decode(item.file), smallest, quality)
    elif check == "decode":
        decode(item.file)
    members = {extension: data, "json": json.dumps({"file": item.name}).encode()}
    if item.label is not None:
        members["cls"] = str(item.label).encode()
    return Sample(key, members, 1)


def smaller(pixels: np.ndarray, side: int, quality: int) -> bytes:
    """A JPEG of an image (3, H, W) uint8 whose shorter side is ``side`` pixels."""
    image = Image.fromarray(pixels.transpose(1, 2, 0))
    scale = side / min(image.size)
    width, height = (max(side, round(old * scale)) for old in image.size)
    buffer = io.BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
