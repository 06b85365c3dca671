"""Models by their name on Hugging Face's hub, from the cache on this machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from d2v_pretrain.errors import ConfigError

# Arguments of ``from_pretrained`` about the hub. ``revision``, ``cache_dir`` and ``subfolder`` say
# where to look; the others have no effect, since nothing is ever downloaded.
HUB_OPTIONS = {"revision", "cache_dir", "subfolder", "local_files_only", "token", "proxies"}
HUB_OPTIONS |= {"use_auth_token", "resume_download", "force_download", "trust_remote_code"}


def model_folder(
    name: str | Path,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    subfolder: str = "",
    force_download: bool = False,
    **unused: Any,
) -> Path:
    """The folder of a model.

    Args:
        name: a path; or a name like ``facebook/data2vec-text-base``, if that is no path and
            ``huggingface_hub`` is installed.
        revision: branch, tag or commit of a name; ``main`` by default.
        cache_dir: the hub cache, if it is not in its usual place.
        subfolder: a folder inside.
        force_download: refused.
        unused: the rest of ``HUB_OPTIONS``.

    Returns:
        The path as it is, or the folder in the local hub cache that holds the model. Nothing is
        downloaded: a name that is not in the cache is returned as a path.
    """
    if force_download:
        remedy = "download the model with the command hf and leave it out"
        raise ConfigError("force_download", True, "is not done: nothing is downloaded", remedy)
    path = Path(name)
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        return path / subfolder if subfolder else path
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        return path
    try:
        found = snapshot_download(
            str(name), revision=revision, cache_dir=cache_dir, local_files_only=True
        )
        return Path(found) / subfolder if subfolder else Path(found)
    except (LocalEntryNotFoundError, HFValidationError):
        return path
