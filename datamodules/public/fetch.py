"""Downloads through dataset classes of torchaudio and torchvision, which leave no partial files."""

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

_LIBRARIES = ("torchaudio.datasets", "torchvision.datasets")


def fetch(root: str, library_class: str | None, parts: Sequence[Mapping[str, Any]]) -> None:
    """Download each part that is not there yet into ``root/<class>-<n>``.

    A part is built in a hidden folder and then renamed, because the libraries would take a partly
    unpacked archive for a complete one.

    Args:
        root: folder of the set; it is made if it is missing.
        library_class: dotted name of a class with an argument ``download``, imported here only;
            None if no library offers the set.
        parts: further arguments of the class, one mapping for each download.

    Raises:
        ConfigError: if no library offers the set, or the download fails.
    """
    if library_class is None:
        remedy = "leave it out and put the files there"
        raise ConfigError("data.download", True, "is not offered for this set", remedy)
    with alone(root):
        for n, arguments in enumerate(parts):
            target = Path(root, f"{library_class.rpartition('.')[2]}-{n}")
            if target.exists():
                continue
            temporary = target.with_name(f".{target.name}")
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            print(f"downloading {library_class} {dict(arguments)} to {target}", flush=True)
            remedy = "try again, or put the files there"
            build(
                library_class, temporary, {**arguments, "download": True}, "data.download", remedy
            )
            temporary.rename(target)


@contextmanager
def alone(root: str) -> Iterator[None]:
    """Make the folder, and let one process of a machine at a time download into it."""
    Path(root).mkdir(parents=True, exist_ok=True)
    with open(os.path.join(root, ".download.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(
    library_class: str, root: str | Path, arguments: Mapping[str, Any], key: str, get: str
) -> Any:
    """An object of a library's dataset class.

    Args:
        library_class: dotted name of a class of torchaudio.datasets or torchvision.datasets. It
            may come from a stored configuration, so nothing else is called.
        root: folder of the data.
        arguments: further arguments of the class.
        key: setting to name in the error.
        get: remedy for the error.

    Raises:
        ConfigError: if it is another class, or the object cannot be made (network, disk, missing
            files).
    """
    library, _, name = library_class.rpartition(".")
    if library not in _LIBRARIES:
        rule = f"is not one of {' or '.join(_LIBRARIES)}"
        raise ConfigError("data.library_class", library_class, rule, "name a class of these")
    try:
        module = importlib.import_module(library)
        if name not in module.__all__:
            raise ImportError("there is no such class")
        return getattr(module, name)(str(root), **arguments)
    except (OSError, RuntimeError, ImportError) as error:
        raise ConfigError(key, root, f"does not give {name} ({error})", get) from None


def demand(there: object, root: str, what: str, get: str) -> None:
    """Check that files were found.

    Args:
        there: what was found; anything false for nothing.
        root: where it was looked for.
        what: the files that were looked for.
        get: how to get them.

    Raises:
        ConfigError: if nothing was found.
    """
    if not there:
        raise ConfigError("data.root", root, f"has no {what}", get)
