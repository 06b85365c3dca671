"""environment.json: versions, hardware, commit and command of each start of a run."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from d2v_pretrain.atomic_files import atomic, set_aside
from d2v_pretrain.redaction import conceal_word
from d2v_pretrain.training.log import warn

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


def write_environment(folder: Path, step: int) -> list[tuple[str, Any, Any]]:
    """Append this start to ``environment.json``, a list with one entry per start of the run.

    Args:
        folder: the run's folder.
        step: that this start goes on from, kept in the entry.

    Returns:
        What differs from the start that has saved this step, as (name, old, new).
    """
    file, now = folder / "environment.json", environment() | {"step": step}
    starts = _starts(file)
    with atomic(file) as temporary:
        temporary.write_text(json.dumps([*starts, now], indent=2) + "\n")
    # A start that began at this step has not saved it.
    before = [start for start in starts if start.get("step", 0) < step][-1:]
    return [change for start in before for change in _differences(start, now)]


def _starts(file: Path) -> list[dict[str, Any]]:
    """The entries of the file so far. A damaged file is set aside, because a run must not fail on
    what it only keeps for its reader."""
    if not file.exists():
        return []
    try:
        starts = json.loads(file.read_text("utf-8"))
    except ValueError:
        starts = None
    if isinstance(starts, list) and all(isinstance(start, dict) for start in starts):
        return starts
    warn(f"{file} is damaged; set aside as {set_aside(file).name}")
    return []


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What differs between two entries, as (name, old, new); packages one by one."""
    for key in sorted(old.keys() & new.keys() - {"command", "step", "packages"}):
        if old[key] != new[key]:
            yield key, old[key], new[key]
    versions = old.get("packages") or {}
    for package, version in new["packages"].items():
        if versions.get(package) != version:
            yield package, versions.get(package), version
