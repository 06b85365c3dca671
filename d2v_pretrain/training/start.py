"""Where a run starts: from which checkpoint, what has changed since it was saved, and whether its
folder can be written.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from d2v_pretrain.atomic_files import append, mend
from d2v_pretrain.checkpoint import file as checkpoint
from d2v_pretrain.config import stored
from d2v_pretrain.config.identity import (
    Change,
    changes,
    check_same_run,
    equals_at_once,
    following_steps,
)
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.redaction import concealed
from d2v_pretrain.training.callbacks.saving import SAVED
from d2v_pretrain.training.destinations import check_folder
from d2v_pretrain.training.environment import write_environment
from d2v_pretrain.training.log import log, warn

CHANGES = "changes.jsonl"  # in the run's folder; see ``record``


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Args:
        checkpoint: that it goes on from; None for the beginning.
        step: of that checkpoint.
        changes: settings that differ from those of the checkpoint.
        following: settings that change because ``steps`` does.
        equals_at_once: whether a change of ``steps`` gives the run that it would have been with
            the new number from its beginning.
    """

    checkpoint: Path | None = None
    step: int = 0
    changes: list[Change] = field(default_factory=list)
    following: list[Change] = field(default_factory=list)
    equals_at_once: bool = False

    @property
    def deliberate(self) -> list[Change]:
        """Changes that are made because the user typed ``resume=with_changes``."""
        return [change for change in self.changes if not change.is_free]


def find_start(cfg: DictConfig, folder: Path) -> Start:
    """Find the newest undamaged checkpoint, and compare its settings with those of this start.

    Args:
        cfg: the configuration, before anything was built from it: building resolves interpolations
            in place, and then it cannot be told what follows what.
        folder: the run's folder.

    Raises:
        ConfigError: the folder cannot be written; ``resume=never`` and there is a run; other
            settings make it another run; all checkpoints that were saved are damaged or gone.
    """
    check_folder(folder)
    saved = _last_saved(folder)
    if cfg.resume == "never":
        if saved or any(folder.glob("checkpoints/*.ckpt")) or (folder / "metrics.jsonl").exists():
            remedy = "type name=… for a new run, or resume=auto"
            raise ConfigError("resume", "never", f"would overwrite {folder}", remedy)
        return Start()
    last, rejected = checkpoint.newest_valid(folder / "checkpoints")
    faults = [f"{path} {reason}" for path, reason in rejected]
    if last is None:
        if saved or rejected:
            _refuse_to_start_over(folder, saved, faults)
        return Start()
    for text in faults:
        warn(f"{text}; passed over")
    step = checkpoint.step_of(last)
    if step < saved and not rejected:
        warn(f"a checkpoint of step {saved:,} had been saved, and is gone: step {step:,} is next")
    old = concealed(stored.plain(checkpoint.config_of(last), last))
    found = changes(old, cfg)
    check_same_run(found, cfg.name, cfg.resume == "with_changes")
    if all(change.key != "steps" for change in found):
        return Start(last, step, found)
    then = old.get("steps")
    if type(then) is not int:
        raise ConfigError("steps", then, f"is no number of steps, in {last}", "name another run")
    same = all(change.is_free for change in found) and equals_at_once(cfg, then, step)
    return Start(last, step, found, following_steps(cfg, then), same)


def check_fits(module: nn.Module, start: Start) -> None:
    """Refuse deliberate changes under which the weights of the checkpoint do not fit the module.

    Raises:
        ConfigError: naming the first change and the first weight that does not fit.
    """
    if start.checkpoint is None or not start.deliberate:
        return
    saved = checkpoint.shapes_of(start.checkpoint)
    ours = {name: tensor.shape for name, tensor in module.state_dict().items()}
    for name in sorted({*saved, *ours}):
        if saved.get(name) != ours.get(name):
            first, *others = start.deliberate
            sizes = f"{_size(saved.get(name))} in the checkpoint and {_size(ours.get(name))} now"
            rule = f"does not fit the weights of {start.checkpoint}: {name} is {sizes}"
            rule += f" (also changed: {', '.join(c.key for c in others)})" if others else ""
            remedy = "type name=… init_from=… for a new run that starts from these weights"
            raise ConfigError(first.key, first.new, rule, remedy)


def tell_changes(start: Start) -> None:
    """Print what differs from the checkpoint, and what another number of steps means."""
    free = [change for change in start.changes if change.is_free and change.key != "steps"]
    if start.deliberate:
        log(f"[bold]changed from step {start.step:,} on[/], as resume=with_changes asks for:")
        _print_table(start.deliberate)
    if free:
        log("changed, and still the same run:")
        _print_table(free)
    for change in start.changes:
        if change.key == "steps":
            _tell_steps(change, start)


def _tell_steps(change: Change, start: Start) -> None:
    log(f"steps={change.new}, and it was {change.old}.")
    if start.following:
        log(f"These settings follow steps, and change from step {start.step:,} on:")
        _print_table(start.following)
    if start.equals_at_once:
        text = "Up to here all schedules are the same, so this run equals, bit for bit, one of"
        log(f"{text} {change.new:,} steps at once.")
    else:
        text = f"Up to step {start.step:,} other values were in use, so this run differs from one"
        log(f"{text} of {change.new:,} steps at once.")


def record(start: Start, folder: Path) -> None:
    """Write this start into the run's folder: ``environment.json``, and a line in ``changes.jsonl``
    for each thing that has changed since the checkpoint was saved.

    A line is ``{"step", "kind", "key", "old", "new"}``; ``kind`` is ``deliberate``, ``free``,
    ``steps`` (it follows steps) or ``environment``. Lines of steps that are trained again are
    removed.
    """
    environment = write_environment(folder, start.step)
    if environment:
        log("changed in the environment, and still the same run:")
        _print_table([Change(*difference) for difference in environment])
    lines = [_line(start, "free" if c.is_free else "deliberate", c) for c in start.changes]
    lines += [_line(start, "steps", change) for change in start.following]
    lines += [_line(start, "environment", Change(*difference)) for difference in environment]
    _, told = mend(folder / CHANGES, lambda row: row["step"] < start.step)
    for text in told:
        warn(text)
    if lines:
        append(folder / CHANGES, "".join(json.dumps(line) + "\n" for line in lines))


def _line(start: Start, kind: str, change: Change) -> dict[str, Any]:
    return {"step": start.step, "kind": kind} | vars(change)


def _print_table(rows: list[Change]) -> None:
    """Print changes as a table: setting, old value, new value."""
    width = max(len(change.key) for change in rows)
    old = max(len(str(change.old)) for change in rows)
    for change in rows:
        warn(f"  {change.key:<{width}}  {change.old!s:<{old}}  ->  {change.new}")


def _last_saved(folder: Path) -> int:
    """The step of the last checkpoint that was saved here; 0 if none was, as far as is known."""
    try:
        return int(json.loads((folder / SAVED).read_text("utf-8"))["step"])
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except (ValueError, KeyError, TypeError):
        warn(f"{folder / SAVED} is damaged; the next checkpoint writes it anew")
        return 0


def _refuse_to_start_over(folder: Path, saved: int, faults: list[str]) -> None:
    until = f"up to step {saved:,} at least" if saved else "before"
    why = "; ".join(faults) or "the folder has none"
    rule = f"has no whole checkpoint, and the run was trained {until} ({why})"
    remedy = "put a copy of one back, or type name=… for a new run"
    raise ConfigError("checkpoints", folder / "checkpoints", rule, remedy)


def _size(shape: Any) -> str:
    return "absent" if shape is None else str(tuple(shape))
