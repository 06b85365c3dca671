"""Identity of a run: which settings must not change when it goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from d2v_pretrain.errors import ConfigError

# The settings that make a run what it is: if one of them changes, its checkpoints no longer fit or
# its data are read in another order.
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
# Settings below those of IDENTITY that may change: where the data are, how many may be bad, how
# fast the teacher follows, where skipped files are listed.
FREE = (
    "data.root",
    "data.max_bad_share",
    "data.skipped_path",
    "data.cache_folder",
    "data.cache_gb",
    "transform.dataset",
    "transform.cache",
    "objective.teacher.decay",
    "architecture.checkpointing",
)


def check_same_run(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse to resume a run under settings that would make it another run.

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
