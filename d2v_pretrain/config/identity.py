"""Identity of a run: which settings make it the run that it is, and which of them have changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from d2v_pretrain.config import stored
from d2v_pretrain.errors import ConfigError

# Every setting makes a run what it is, also one that is added later, except these. They say where
# and how fast a run trains, what it shows and what it keeps. ``steps`` says only how far it goes.
FREE = (
    "steps",
    "trainer",
    "workers",
    "log_every",
    "logger",
    "probe",
    "callbacks",
    "checkpoint",
    "max_hours",
    "profile",
    "test_every",
    "recipe",
    "conf",
    "trust",
    "architecture.checkpointing",
    "data.root",
    "data.skipped_path",
    "data.max_bad_share",
    "data.cache_folder",
    "data.cache_gb",
    "transform.cache",
)
# Below a free setting, and not free: Lightning would change the training by them.
NOT_FREE = ("trainer.gradient_clip_val", "trainer.gradient_clip_algorithm")
# Not compared: how the run is called, and what is read from the data anew at each start.
UNCOMPARED = ("name", "folder", "resume", "swept", "classes")
# What cannot change within a run at all, because its checkpoints would have no meaning: what is
# learned from, the order of the data, and which numbers the optimizer remembers.
FIXED = (
    "task",
    "modality",
    "labels",
    "labelled",
    "init_from",
    "seed",
    "global_batch",
    "micro_batch",
    "max_tokens",
    "window_shards",
    "data",
    "transform",
    "datamodule",
    "layer_decay",
    "module.optimizer._target_",
)
_SCHEDULES = "d2v_pretrain.schedules."


@dataclass(frozen=True)
class Change:
    """A setting whose value differs between two starts of a run.

    Args:
        key: the setting, with dots.
        old: its value in the checkpoint; None if it was not there.
        new: its value in this start.
    """

    key: str
    old: Any
    new: Any

    @property
    def is_free(self) -> bool:
        """Whether the run stays the same run."""
        return is_free(self.key)

    @property
    def is_possible(self) -> bool:
        """Whether the checkpoints of a run keep their meaning with the new value."""
        return self.is_free or not _is_under(self.key, FIXED)


def is_free(key: str) -> bool:
    """Whether a run may change this setting and still be the same run."""
    return _is_under(key, (*FREE, *UNCOMPARED)) and not _is_under(key, NOT_FREE)


def changes(old: Mapping[str, Any], cfg: DictConfig) -> list[Change]:
    """The settings that differ from those of a checkpoint.

    A setting that only follows another one (``schedule.peak: ${lr}``) is left out, unless following
    does not explain its change.

    Args:
        old: the resolved configuration in the checkpoint. Nothing in it is built.
        cfg: the configuration of this start, with its interpolations.
    """
    before, after = _flat(old), _resolved(cfg)
    differing = _differing(before, after)
    found: list[str] = []
    for depth in range(3):
        # With what was found set back, whatever only follows it has its old value again.
        now = _resolved(_with_values(cfg, found, before)) if depth else after
        unexplained = _differing(before, now)
        found += [key for key in differing if key in unexplained and _depth(cfg, key) == depth]
    # Where another class is chosen, its arguments are other ones, which need no mention.
    one_side = {key for key in found if (key in before) != (key in after)}
    swapped = {key for key in one_side if _is_of_other_class(key, before, after)}
    keys = [key for key in differing if key in found and key not in swapped]
    return [
        Change(key, before.get(key), after.get(key))
        for key in keys
        if not _is_under(key, UNCOMPARED)
    ]


def _is_of_other_class(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    target = f"{key.rpartition('.')[0]}._target_"
    return target in before and target in after and before[target] != after[target]


def check_same_run(found: Sequence[Change], name: str, deliberate: bool) -> None:
    """Refuse to go on with a run under settings that would make it another run.

    Args:
        found: what differs, see ``changes``.
        name: of the run.
        deliberate: whether the user has typed ``resume=with_changes``.

    Raises:
        ConfigError: naming all settings that are refused.
    """
    others = [change for change in found if not change.is_free]
    impossible = [change for change in others if not change.is_possible]
    refused = impossible if deliberate else others
    if not refused:
        return
    first, *rest = refused
    rule = f"differs from {first.old}, with which the run {name} was started"
    more = ", ".join(f"{c.key}={c.new} (it was {c.old})" for c in rest)
    rule += f"; so do {more}" if more else ""
    rule += ", and cannot change within a run" if deliberate else ""
    remedy = "type name=… for a new run"
    if not impossible:
        remedy += ", or add resume=with_changes if this run is to go on with the new values"
    raise ConfigError(first.key, first.new, rule, remedy)


def following_steps(cfg: DictConfig, old_steps: int) -> list[Change]:
    """The settings that change because ``steps`` does, such as a warm-up that is a share of it."""
    before = _resolved(_with_values(cfg, ["steps"], {"steps": old_steps}))
    after = _resolved(cfg)
    keys = [key for key in _differing(before, after) if key != "steps"]
    shown = [key for key in keys if _depth(cfg, key) < 2]
    return [Change(key, before.get(key), after.get(key)) for key in shown]


def equals_at_once(cfg: DictConfig, old_steps: int, step: int) -> bool:
    """Whether a run that was begun with other ``steps`` has trained, up to ``step``, exactly as a
    run with the ``steps`` of ``cfg`` does: all its schedules have had the same values.
    """
    old = _with_values(cfg, ["steps"], {"steps": old_steps})
    then, now = (OmegaConf.to_container(c.module, resolve=True) for c in (old, cfg))
    return _same_until(then, now, step)


def _same_until(a: Any, b: Any, step: int) -> bool:
    if not isinstance(a, dict) or not isinstance(b, dict):
        return a == b
    if a != b and all(str(node.get("_target_")).startswith(_SCHEDULES) for node in (a, b)):
        one, other = instantiate(a), instantiate(b)
        return all(one(k) == other(k) for k in range(step + 1))
    return a.keys() == b.keys() and all(_same_until(a[key], b[key], step) for key in a)


def _with_values(cfg: DictConfig, keys: Sequence[str], values: Mapping[str, Any]) -> DictConfig:
    """A copy of a configuration with these keys set to other values, or removed where there is no
    value; what follows them follows the new values."""
    out = copy.deepcopy(cfg)
    OmegaConf.set_struct(out, False)
    for key in keys:
        if key not in values:
            parent, _, last = key.rpartition(".")
            node = OmegaConf.select(out, parent) if parent else out
            if isinstance(node, DictConfig):
                node.pop(last, None)
    for key in keys:
        if key in values:
            value = values[key]
            # Values come from a file: what looks like an interpolation there is only text.
            value = value.replace("${", r"\${") if isinstance(value, str) else value
            OmegaConf.update(out, key, value, merge=False, force_add=True)
    return out


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    return _flat(stored.resolved(cfg))


def _flat(node: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value, of all values of nested mappings."""

    def walk(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, Mapping):
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(walk(node, ""))


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Keys with different values, those of few parts first. A missing value counts as null."""
    keys = sorted({*before, *after}, key=lambda key: (key.count("."), key))
    return [key for key in keys if before.get(key) != after.get(key)]


def _depth(cfg: DictConfig, key: str) -> int:
    """0 if a configuration holds a value itself, 1 if the value is an interpolation (``${…}``), 2
    if it is below a node that is one."""
    node: Any = cfg
    *parents, last = key.split(".")
    for part in parents:
        if not isinstance(node, DictConfig) or part not in list(node):
            return 0
        if OmegaConf.is_interpolation(node, part):
            return 2
        node = node[part]
    known = isinstance(node, DictConfig) and last in list(node)
    return 1 if known and OmegaConf.is_interpolation(node, last) else 0


def _is_under(key: str, parents: Sequence[str]) -> bool:
    return any(key == parent or key.startswith(parent + ".") for parent in parents)
