"""ImageSet: class folders of a known layout; TorchvisionImages: sets that torchvision keeps in its
own files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from d2v_pretrain.errors import ConfigError
from datamodules.datasets.image_folder import ImageFolder
from datamodules.datasets.labels import Item, labelled
from datamodules.datasets.probe_tasks import Labelled
from datamodules.public.fetch import alone, build, demand, fetch


class ImageSet(ImageFolder):
    """``train/<class>/…`` and, for the probe, ``val|test/<class>/…``, in a folder or in one
    directly below it.

    Args:
        root: folder of the set.
        min_side, max_bad_share, skipped_path: see ``ImageFolder``.
        dataset, parts: see ``datamodules.public.fetch.fetch``.
        download: whether to fetch what is not there.
        get: what to put where, for the error if it is not there.
    """

    def __init__(
        self,
        root: str,
        min_side: int,
        max_bad_share: float,
        skipped_path: str | None,
        dataset: str | None,
        parts: Sequence[Mapping[str, Any]],
        download: bool,
        get: str,
    ) -> None:
        if download:
            fetch(root, dataset, parts)
        super().__init__(_home(root, get), min_side, max_bad_share, skipped_path)


def _home(root: str, get: str) -> str:
    """The first folder that has ``train/``: the root, or at most two below it (an archive in a
    download)."""
    for folder, below, _ in os.walk(root):
        if "train" in below:
            for name in sorted({"val", "test"} & set(below)):
                flat = [
                    entry.name
                    for entry in os.scandir(os.path.join(folder, name))
                    if entry.is_file()
                ]
                demand(
                    not flat,
                    os.path.join(folder, name),
                    f"class folders, but files such as {flat[:1]}",
                    get,
                )
            return folder
        below[:] = [] if os.path.relpath(folder, root).count(os.sep) else sorted(below)
    raise ConfigError("data.root", root, "has no folder train/", get)


class TorchvisionImages:
    """A data set class of torchvision; it checks its files by their checksums.

    Args:
        root: folder in which torchvision unpacks.
        dataset: name of the class in ``torchvision.datasets``.
        pretrain, train, test: its further arguments for what is pretrained on and for the two
            splits of the probe.
        download: whether to fetch what is not there.
        get: what to put where, for the error if it is not there.
    """

    def __init__(
        self,
        root: str,
        dataset: str,
        pretrain: Mapping[str, Any],
        train: Mapping[str, Any],
        test: Mapping[str, Any],
        download: bool,
        get: str,
    ) -> None:
        self.root, self.dataset, self.get = root, f"torchvision.datasets.{dataset}", get
        self.arguments = {"pretrain": dict(pretrain), "train": dict(train), "test": dict(test)}
        if download:
            with alone(root):  # what is there with the right checksum is not fetched again
                build(
                    self.dataset,
                    root,
                    {**pretrain, "download": True},
                    "data.download",
                    "try again, or " + get,
                )

    @cached_property
    def splits(self) -> dict[str, Any]:
        """The three sets; equal ones are one."""
        made: dict[str, Any] = {}
        for name, arguments in self.arguments.items():
            alike = [other for other in made if self.arguments[other] == arguments]
            made[name] = (
                made[alike[0]]
                if alike
                else build(self.dataset, self.root, arguments, "data.root", self.get)
            )
        return made

    def __len__(self) -> int:
        return len(self.splits["pretrain"])

    def name(self, index: int) -> str:
        """What the doctor calls an image."""
        return f"image {index} of {self.dataset}"

    def read(self, index: int) -> np.ndarray:
        """(3, H, W) uint8."""
        return self._read("pretrain", index)

    def _read(self, split: str, index: int) -> np.ndarray:
        image, _ = self.splits[split][index]
        return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))

    def describe(self) -> str:
        """One line for the log."""
        return f"{self.dataset} in {self.root}: {len(self):,} images"

    def labelled(self) -> list[Labelled[np.ndarray]]:
        """The class, by torchvision's train and test split."""
        items = [
            Item(f"{split} {i}", str(self.splits[split][i][1]), split == "test")
            for split in ("train", "test")
            for i in range(len(self.splits[split]))
        ]
        return [labelled("classes", items, self._labelled, "tested on the set's test images")]

    def _labelled(self, key: str) -> np.ndarray:
        split, _, index = key.partition(" ")
        return self._read(split, int(index))


def folders_or_torchvision(
    root: str,
    min_side: int,
    max_bad_share: float,
    skipped_path: str | None,
    dataset: str,
    pretrain: Mapping[str, Any],
    train: Mapping[str, Any],
    test: Mapping[str, Any],
    download: bool,
    get: str,
) -> ImageSet | TorchvisionImages:
    """``ImageSet`` where the root has ``train/<class>/…``, as small sets are often passed on; else
    torchvision.

    Args:
        root, min_side, max_bad_share, skipped_path: see ``ImageSet``.
        dataset, pretrain, train, test, download, get: see ``TorchvisionImages``.
    """
    if not download and os.path.isdir(os.path.join(root, "train")):
        return ImageSet(root, min_side, max_bad_share, skipped_path, None, (), False, get)
    return TorchvisionImages(root, dataset, pretrain, train, test, download, get)
