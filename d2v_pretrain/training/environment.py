"""environment.json: versions, hardware, commit and command of each start of a run."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from d2v_pretrain.atomic_files import atomic
from d2v_pretrain.redaction import conceal_word

PACKAGES = (
    "d2v-pretrain",
    "torch",
    "torchvision",
    "torchaudio",
    "lightning",
    "hydra-core",
    "numpy",
    "tokenizers",
)


def environment() -> dict[str, Any]:
    """What this process runs on, as plain types."""
    return {
        "command": [conceal_word(word) for word in sys.argv],
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The clone's commit, with a + if files differ from it; None outside of a clone."""
    options = ["--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    git = ["git", "-C", str(Path(__file__).parent), "describe", *options]
    try:
        done = subprocess.run(git, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def write_environment(folder: Path) -> None:
    """Append this start to ``environment.json``, a list with one entry per start of the run."""
    file = folder / "environment.json"
    starts = json.loads(file.read_text()) if file.exists() else []
    with atomic(file) as temporary:
        temporary.write_text(json.dumps([*starts, environment()], indent=2) + "\n")
