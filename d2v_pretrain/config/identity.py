"""What a run was made with: environment.json, and whether a run of this name was another one."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from d2v_pretrain.errors import ConfigError

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
# What a run is: where one of these changes, its checkpoints no longer fit or its data order is
# another one.
IDENTITY = (
    "task",
    "labels",
    "init_from",
    "objective",
    "architecture",
    "masking",
    "data",
    "transform",
    "seed",
    "global_batch",
    "micro_batch",
    "max_tokens",
    "window_shards",
)
# Parts of them that may change: where the data lies, how fast the teacher follows, where skipped
# files are listed.
FREE = (
    "data.root",
    "data.skipped_path",
    "data.cache_folder",
    "data.cache_gb",
    "transform.dataset",
    "transform.cache",
    "objective.teacher.decay",
    "architecture.checkpointing",
)


def environment() -> dict[str, Any]:
    """Versions, hardware, commit and command, as plain types."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "gpus": gpus,
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
    git = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--abbrev=40",
        "--exclude=*",
        "--dirty=+",
    ]
    try:
        return subprocess.run(
            git, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def write_environment(folder: Path) -> None:
    """Append this start to ``environment.json``, a list with one entry per start of the run."""
    file = folder / "environment.json"
    starts = json.loads(file.read_text()) if file.exists() else []
    file.write_text(json.dumps([*starts, environment()], indent=2) + "\n")


def check_same_run(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse to go on with a run under settings that make it another one.

    Args:
        old: resolved configuration in the run's folder. new: resolved configuration of this start.

    Raises:
        ConfigError: naming all settings that differ, causes before effects.
    """
    before, after = dict(_flat(old)), dict(_flat(new))
    keys = sorted(
        before.keys() | after.keys(), key=lambda key: (key.count("."), key)
    )  # causes before effects
    ours = (key for key in keys if _is_under(key, IDENTITY) and not _is_under(key, FREE))
    differing = [key for key in ours if before.get(key) != after.get(key)]
    if differing:
        first, *others = differing
        rule = f"differs from {before.get(first)}, with which the run {new['name']} was started"
        rule += f"; so do {', '.join(others)}" if others else ""
        raise ConfigError(first, after.get(first), rule, "type name=… for a new run")


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_under(key: str, parents: tuple[str, ...]) -> bool:
    return any(key == parent or key.startswith(parent + ".") for parent in parents)
