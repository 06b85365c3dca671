"""Models by their name on Hugging Face's hub, from the cache on this machine."""

from __future__ import annotations

import re
from pathlib import Path


def model_folder(name: str | Path) -> Path:
    """The folder of a model.

    Args:
        name: a path; or a name like ``facebook/data2vec-text-base``, if that is no path and
            ``huggingface_hub`` is installed.

    Returns:
        The path as it is, or the folder in the local hub cache that holds the model. Nothing is
        downloaded: a name that is not in the cache is returned as a path.
    """
    path = Path(name)
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        return path
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        return path
    try:
        return Path(snapshot_download(str(name), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return path
