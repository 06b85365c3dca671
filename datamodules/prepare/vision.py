"""Image files to samples: their own bytes, or JPEG of a given short side; classes from folders."""

from __future__ import annotations

import io
import json
import os
import sys
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from datamodules.datasets.image_folder import ImageFolder, decode
from datamodules.datasets.labels import from_folders
from datamodules.datasets.scan import Unusable
from datamodules.prepare.output import Output
from datamodules.prepare.packing import Plan, Reasons, arranged, below, bytes_of, cut, source_of
from datamodules.prepare.settings import Vision
from datamodules.prepare.tar import Sample, tar_bytes

_JPEG = 0.35  # bytes a pixel at quality 90, about


class Picture(NamedTuple):
    """A sample to be: its file, the name below the input, and its class, or None where folders are
    none."""

    file: str
    name: str
    label: int | None


def plan(settings: Vision, _: Output) -> Plan:
    """Which image goes to which shard."""
    folder = ImageFolder(settings.input, settings.min_side, settings.max_bad_share, None)
    folder.skipped = reasons = Reasons(settings.input)
    names = {file: below(file, settings.input) for file in folder.files}
    sizes = {file: os.path.getsize(file) for file in names}
    items = from_folders([name.replace("/", os.sep) for name in names.values()])
    tested = {
        item.key.split(os.sep)[0] for item in items if item.test and item.key.count(os.sep) > 1
    }
    if tested:
        print(
            f"{', '.join(sorted(tested))} is packed too; input=…/train leaves it out",
            file=sys.stderr,
        )
    classes = sorted({item.label for item in items})
    labels = {item.key.replace(os.sep, "/"): classes.index(item.label) for item in items}
    pictures = [Picture(file, name, labels.get(name)) for file, name in names.items()]
    pictures = [pictures[i] for i in arranged(len(pictures), settings)]
    short, most = settings.short_side, (settings.short_side or 0) ** 2 * 4 / 3 * _JPEG
    made = np.array(
        [
            tar_bytes(
                int(min(sizes[p.file], most) if short else sizes[p.file]), len(p.name) + 40, 4
            )
            for p in pictures
        ]
    )
    make = partial(sample, short_side=short, quality=settings.quality, check=settings.check)
    return Plan(
        pictures,
        cut(made, settings),
        make,
        _name,
        float(made.sum()),
        source_of([(names[file], size) for file, size in sizes.items()]),
        {"unit": "images", "classes": classes},
        reasons.reasons,
    )


def _name(picture: Picture) -> str:
    return picture.name


def sample(picture: Picture, key: str, short_side: int | None, quality: int, check: str) -> Sample:
    """The members of an image: itself, ``cls`` (the number of its class, if it has one) and
    ``json`` (file).

    Raises:
        Unusable: if it cannot be decoded.
    """
    extension, data = os.path.splitext(picture.file)[1][1:].lower(), bytes_of(picture.file)
    if short_side and _short_side(picture.file) > short_side:
        extension, data = "jpg", smaller(decode(picture.file), short_side, quality)
    elif check == "decode":
        decode(picture.file)
    members = {extension: data, "json": json.dumps({"file": picture.name}).encode()}
    if picture.label is not None:
        members["cls"] = str(picture.label).encode()
    return Sample(key, members, 1)


def smaller(pixels: np.ndarray, short_side: int, quality: int) -> bytes:
    """A JPEG whose shorter side is ``short_side`` pixels, of the same shape but for rounding.

    Args:
        pixels: (3, H, W) uint8, upright.
    """
    image = Image.fromarray(pixels.transpose(1, 2, 0))
    scale = short_side / min(image.size)
    width, height = (max(short_side, round(side * scale)) for side in image.size)
    buffer = io.BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _short_side(file: str) -> int:
    try:
        with Image.open(file) as image:
            return min(image.size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Unusable(f"not readable as an image ({error})") from None
