"""Checks of where a run writes, before anything is built: its folder, and Weights & Biases."""

from __future__ import annotations

import netrc
import os
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from d2v_pretrain.atomic_files import unwritable
from d2v_pretrain.errors import ConfigError

_WANDB = "https://api.wandb.ai"
_NOT_SENT = ("offline", "disabled", "dryrun")  # values of WANDB_MODE that need no account


def check_folder(folder: Path) -> None:
    """Check that files can be written into the run's folder, or that it can be made. Nothing is
    left behind.

    Raises:
        ConfigError: they cannot.
    """
    for place in (folder, folder / "checkpoints"):
        there = next(p for p in (place, *place.absolute().parents) if os.path.lexists(p))
        try:
            with tempfile.TemporaryFile(dir=there) as file:
                file.write(bytes(4096))
                file.flush()
        except OSError as error:
            raise unwritable(error, place, "folder") from None


def check_logger(logger: Mapping[str, Any] | None, environ: Mapping[str, str]) -> None:
    """Check that Weights & Biases, if it is the logger, is installed and knows the user.

    Args:
        logger: configuration of the logger.
        environ: environment variables.

    Raises:
        ConfigError: the package is missing, or nobody is logged in.
    """
    if not logger or not str(logger["_target_"]).endswith(("WandbLogger", "WeightsAndBiases")):
        return
    if find_spec("wandb") is None:
        rule = "needs the package wandb, which is not installed"
        raise ConfigError("logger", "wandb", rule, "type pip install wandb, or logger=csv")
    offline = environ.get("WANDB_MODE", "") in _NOT_SENT or "WANDB_DISABLED" in environ
    key = environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE")
    if offline or key or logger.get("offline") or _in_netrc(environ):
        return
    rule = "needs an account, and nobody is logged in here"
    remedy = "type wandb login once, or set WANDB_API_KEY, or WANDB_MODE=offline to send nothing"
    raise ConfigError("logger", "wandb", rule, remedy)


def _in_netrc(environ: Mapping[str, str]) -> bool:
    """Whether the file where ``wandb login`` writes has an entry for the server."""
    host = urlsplit(environ.get("WANDB_BASE_URL") or _WANDB).hostname or ""
    named = environ.get("NETRC")
    for file in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if netrc.netrc(file).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
