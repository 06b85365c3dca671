"""The members of a sample by their extensions: numbered files, members without use, the label."""

from __future__ import annotations

import json
from collections.abc import Iterable

from datamodules.datasets.image_folder import ENDINGS as IMAGES
from datamodules.datasets.sound import ENDINGS as AUDIO
from datamodules.datasets.unusable import reading


def numbered(extension: str) -> str | None:
    """The part of an extension before its last dot, if it has a digit: "val.0001" of
    "val.0001.jpg".

    Files in a row that WebDataset gives one key (``ILSVRC2012.val.0001.jpg``) and that differ in
    this part are samples of their own, where WebDataset has one sample with an image for each.
    """
    middle = extension.rpartition(".")[0]
    return middle if any(map(str.isdigit, middle)) else None


def further(extensions: Iterable[str]) -> list[str]:
    """Extensions of a sample that are not used, as another one comes first that is also of a sound,
    of an image, of ids or of a text.

    ``seg.png`` beside ``jpg`` is WebDataset's way to add something to an image, and no such one.
    """
    first, unused = dict[object, str](), []
    for extension in extensions:
        ending = f".{extension.rpartition('.')[2]}"
        for kind in (AUDIO, IMAGES, (".npy",), (".txt",)):
            used = first.setdefault(kind, extension) if ending in kind else extension
            if used != extension and ("." in used or "." not in extension):
                unused.append(extension)
    return unused


def label_of(members: dict[str, bytes], label_key: str) -> str:
    """The class of a sample, by member ("cls") or by member and field ("json.speaker").

    Raises:
        Unusable: if the sample has none.
    """
    extension, _, field = label_key.partition(".")
    with reading("has no label"):
        label = members[extension].decode("utf-8-sig").strip()
        return str(json.loads(label)[field]) if field else label
