"""ImageSet: class folders of a known layout; TorchvisionImages: torchvision's own files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from d2v_pretrain.errors import ConfigError
from datamodules.datasets.base import Dataset
from datamodules.datasets.image_folder import ImageFolder
from datamodules.datasets.labels import LabelRow, labelled
from datamodules.datasets.probe_tasks import Labelled
from datamodules.public.fetch import alone, build, demand, fetch


class ImageSet(ImageFolder):
    """``train/<class>/...`` and, for the probe, ``val/<class>/...`` or ``test/<class>/...``.

    These folders are in ``root`` or at most two levels below it.

    Args:
        root: folder of the set.
        min_side, max_bad_share, skipped_path: see ``ImageFolder``.
        library_class, parts: see ``datamodules.public.fetch.fetch``.
        download: whether to download what is not there.
        get: which files to put where, for the error message if none are found.
    """

    def __init__(
        self,
        root: str,
        min_side: int,
        max_bad_share: float,
        skipped_path: str | None,
        library_class: str | None,
        parts: Sequence[Mapping[str, Any]],
        download: bool,
        get: str,
    ) -> None:
        if download:
            fetch(root, library_class, parts)
        super().__init__(_home(root, get), min_side, max_bad_share, skipped_path)


def _home(root: str, get: str) -> str:
    """The first folder that has ``train/``: the root, or at most two below it."""
    for folder, below, _ in os.walk(root):
        if "train" in below:
            for name in sorted({"val", "test"} & set(below)):
                path = os.path.join(folder, name)
                flat = [entry.name for entry in os.scandir(path) if entry.is_file()]
                demand(not flat, path, f"class folders, but files such as {flat[:1]}", get)
            return folder
        below[:] = [] if os.path.relpath(folder, root).count(os.sep) else sorted(below)
    raise ConfigError("data.root", root, "has no folder train/", get)


class TorchvisionImages(Dataset[np.ndarray]):
    """A dataset class of torchvision, which checks its files by their checksums.

    Called for a root that has ``train/<class>/...``, as small sets are often passed on, the class
    makes an ``ImageSet`` instead.

    Args:
        root: folder in which torchvision unpacks.
        min_side, max_bad_share, skipped_path: see ``ImageSet``; only for class folders.
        torchvision_class: name of the class in ``torchvision.datasets``.
        pretrain, train, test: further arguments of the class for pretraining and for the two splits
            of the probe.
        download: whether to download what is not there.
        get: which files to put where, for the error message if none are found.
    """

    holds = "image"

    def __new__(cls, root: str = "", *_: Any, **settings: Any) -> Any:
        folders = bool(settings) and os.path.isdir(os.path.join(root, "train"))
        if not folders or settings["download"]:  # pickle calls it without settings
            return super().__new__(cls)
        kept = {key: settings[key] for key in ("min_side", "max_bad_share", "skipped_path", "get")}
        return ImageSet(root, **kept, library_class=None, parts=(), download=False)

    def __init__(
        self,
        root: str,
        *,
        min_side: int,
        max_bad_share: float,
        skipped_path: str | None,
        torchvision_class: str,
        pretrain: Mapping[str, Any],
        train: Mapping[str, Any],
        test: Mapping[str, Any],
        download: bool,
        get: str,
    ) -> None:
        self.root, self.get = root, get
        self.library_class = f"torchvision.datasets.{torchvision_class}"
        self.arguments = {"pretrain": dict(pretrain), "train": dict(train), "test": dict(test)}
        if download:
            remedy = "try again, or " + get
            with alone(root):  # files with the right checksum are not downloaded again
                arguments = {**pretrain, "download": True}
                build(self.library_class, root, arguments, "data.download", remedy)

    @cached_property
    def splits(self) -> dict[str, Any]:
        """The pretrain, train and test sets; splits with equal arguments share one object."""
        made: dict[str, Any] = {}
        for name, arguments in self.arguments.items():
            alike = [other for other in made if self.arguments[other] == arguments]
            made[name] = (
                made[alike[0]]
                if alike
                else build(self.library_class, self.root, arguments, "data.root", self.get)
            )
        return made

    def __len__(self) -> int:
        return len(self.splits["pretrain"])

    def name(self, index: int) -> str:
        return f"image {index} of {self.library_class}"

    def read(self, index: int) -> np.ndarray:
        return self._read("pretrain", index)

    def _read(self, split: str, index: int) -> np.ndarray:
        image, _ = self.splits[split][index]
        return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))

    def describe(self) -> str:
        return f"{self.library_class} in {self.root}: {len(self):,} images"

    def labelled(self) -> list[Labelled[np.ndarray]]:
        """The class, by torchvision's train and test split."""
        rows = [
            LabelRow(f"{split} {i}", str(self.splits[split][i][1]), split == "test")
            for split in ("train", "test")
            for i in range(len(self.splits[split]))
        ]

        def read(key: str) -> np.ndarray:
            split, _, index = key.partition(" ")
            return self._read(split, int(index))

        return [labelled("classes", rows, read, "tested on the set's test images")]
