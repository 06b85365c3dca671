"""Downloads through classes of torchaudio and torchvision, whole or not at all; what to say if
files are missing."""

from __future__ import annotations

import fcntl
import importlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from d2v_pretrain.errors import ConfigError


def fetch(root: str, dataset: str | None, parts: Sequence[Mapping[str, Any]]) -> None:
    """Download each part that is not there yet into ``root/<class>-<n>``.

    A part is built in a hidden folder and then renamed: the libraries take a half unpacked archive
    for a whole one.

    Args:
        root: folder of the set, made if need be.
        dataset: dotted name of a class with an argument ``download``; it is imported here and
            nowhere else.
        parts: further arguments of the class, one mapping for each download.

    Raises:
        ConfigError: if no library offers the set, or the download fails.
    """
    if dataset is None:
        raise ConfigError(
            "data.download",
            True,
            "is not offered for this set",
            "leave it out and put the files there",
        )
    with alone(root):
        for n, arguments in enumerate(parts):
            target = Path(root, f"{dataset.rpartition('.')[2]}-{n}")
            if not target.exists():
                _fetch_one(target, dataset, arguments)


@contextmanager
def alone(root: str) -> Iterator[None]:
    """Make the folder if need be, and let one process (rank) of a machine at a time download into
    it."""
    Path(root).mkdir(parents=True, exist_ok=True)
    with open(os.path.join(root, ".download.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch_one(target: Path, dataset: str, arguments: Mapping[str, Any]) -> None:
    temporary = target.with_name(f".{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    print(f"downloading {dataset} {dict(arguments)} to {target}", flush=True)
    build(
        dataset,
        temporary,
        {**arguments, "download": True},
        "data.download",
        "try again, or put the files there",
    )
    temporary.rename(target)


def build(dataset: str, root: str | Path, arguments: Mapping[str, Any], key: str, get: str) -> Any:
    """An object of a library's data set class; what goes wrong (network, disk, missing files) is
    one sentence.

    Args:
        dataset: dotted name of the class. root: its folder. arguments: its further arguments.
        key: setting to name in the error. get: the remedy.
    """
    module, _, name = dataset.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)(str(root), **arguments)
    except (OSError, RuntimeError, ImportError) as error:
        raise ConfigError(key, root, f"does not give {name} ({error})", get) from None


def demand(there: object, root: str, what: str, get: str) -> None:
    """Raise a ``ConfigError`` that says what to put where unless ``there`` is true.

    Args:
        there: whether the files were found.
        root: where. what: was looked for. get: how to get it.
    """
    if not there:
        raise ConfigError("data.root", root, f"has no {what}", get)
