"""MetricsLog collects numbers from all Meters and gives them to the loggers.

Nothing else in training copies numbers from the device to the host.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from d2v_pretrain.atomic_files import append, atomic, json_lines, mend
from d2v_pretrain.checkpoint import ownership
from d2v_pretrain.training.log import warn
from d2v_pretrain.training.signals import Stopped
from d2v_pretrain.types import Batch


class Meter(Callback):
    """A callback with numbers to log. ``MetricsLog`` calls all meters on every rank, in the order
    of the trainer's callbacks.
    """

    def count(self, trainer: Trainer, module: LightningModule, batch: Batch) -> None:
        """Called after every micro-batch. It must not read tensors of the device, which would make
        the host wait.
        """

    def observe(self, trainer: Trainer, module: LightningModule) -> dict[str, Tensor | float]:
        """Called at logged steps: numbers to log, as floats or () tensors on any device.

        Raises:
            Stopped: a signal came. The same is asked again at the next start.
        """
        return {}

    def receive(self, trainer: Trainer, module: LightningModule, values: dict[str, float]) -> None:
        """Called at logged steps with the numbers of all meters: averaged over ranks, on the
        host.
        """


class MetricsLog(Callback):
    """Every ``log_every`` steps, collect numbers from module and meters, wait for the device once,
    and give them to all loggers.

    Logged are the first step, every ``log_every``-th and the last, so a resumed run logs the same
    steps. The line of a step is written before that step's checkpoint (Lightning calls checkpoint
    callbacks last), so a kill leaves no gap.

    The module has ``log_metrics: dict[str, Tensor | float]``, the numbers of its last step, and
    ``samples_seen``.

    Args:
        log_every: optimizer steps between lines.
    """

    def __init__(self, log_every: int) -> None:
        self.log_every, self.seen = log_every, 0
        self.meters: list[Meter] = []
        self.pending: dict[str, Any] | None = None  # a line that a stop has cut off

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.meters = [c for c in trainer.callbacks if isinstance(c, Meter)]  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove lines that a killed run wrote after the checkpoint that this run continues
        from.
        """
        self.seen = trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, JsonlLogger):
                logger.rewind(self.seen)
        self._complete(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete the last line of a run. Lightning does not start training for it."""
        if trainer.global_step >= trainer.max_steps:
            self._complete(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"pending": self.pending}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pending = state_dict["pending"]

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Log if this micro-batch ended an optimizer step that is logged."""
        for meter in self.meters:
            meter.count(trainer, pl_module, batch)
        step = trainer.global_step
        if step == self.seen:
            return
        self.seen = step
        if step != 1 and step % self.log_every and step != trainer.max_steps:
            return
        module: Any = pl_module
        self._log(trainer, module, dict(module.log_metrics), 0)

    def _log(
        self,
        trainer: Trainer,
        module: LightningModule,
        collected: dict[str, Tensor | float],
        first: int,
    ) -> None:
        """Complete ``collected`` by the numbers of the meters from number ``first`` on, and log
        them.

        A signal may cut a long meter off, such as a probe. The checkpoint that is then written
        holds what is known of this line, and the next start measures the rest. Weights and data are
        the same then.
        """
        left = self.meters[first:]
        try:
            while left:
                collected |= left[0].observe(trainer, module)
                left = left[1:]
        except Stopped:
            known, at = read(collected, trainer, module.device), len(self.meters) - len(left)
            self.pending = {"step": trainer.global_step, "values": known, "meter": at}
            return
        samples: int = module.samples_seen  # type: ignore[assignment]
        values = {"samples": samples} | read(collected, trainer, module.device)
        for meter in self.meters:
            meter.receive(trainer, module, values)
        for logger in trainer.loggers:
            logger.log_metrics(values, trainer.global_step)

    def _complete(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the line that a stop has cut off before this start."""
        pending, self.pending = self.pending, None
        if pending is not None and pending["step"] == trainer.global_step:
            self._log(trainer, module, pending["values"], pending["meter"])


def read(
    collected: dict[str, Tensor | float], trainer: Trainer, device: torch.device
) -> dict[str, float]:
    """Mean over ranks of every number, with one collective and one wait for the device.

    Numbers travel as float64, which holds large counts exactly; as float32 on devices without
    float64.

    Args:
        collected: () tensors on ``device`` or the host, and numbers; the same keys on every rank.
        trainer: whose ranks are averaged over.
        device: of the collective.
    """
    dtype = torch.float32 if device.type == "mps" else torch.float64
    numbers = [0.0 if isinstance(v, Tensor) else v for v in collected.values()]
    host = torch.tensor(numbers, dtype=dtype)
    vector = host.to(device, non_blocking=True)
    for i, value in enumerate(collected.values()):
        if isinstance(value, Tensor):
            vector[i] = value.detach().to(device, dtype, non_blocking=True)
    reduced = trainer.strategy.reduce(vector, reduce_op="mean")
    assert isinstance(reduced, Tensor)
    return dict(zip(collected, reduced.tolist()))


class JsonlLogger(Logger):
    """Writes ``metrics.jsonl`` in the run's folder, and ``metrics.csv`` with the same numbers for
    spreadsheets.

    A logged step is one line, ``{"step": ..., "loss": ..., ...}``. It is written at once, so that a
    killed process loses none. nan and inf, which JSON does not know, become null. Only rank 0
    writes.

    Args:
        folder: the run's folder; made at the first line.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.jsonl, self.csv = Path(folder) / "metrics.jsonl", Path(folder) / "metrics.csv"
        self.columns: list[str] = []

    @property
    def name(self) -> str:
        return self.jsonl.parent.name

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.jsonl.parent)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the resolved configuration is in the run's folder."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None, "a line needs its step"
        ownership.confirm()
        line = {"step": step} | {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        append(self.jsonl, json.dumps(line) + "\n")
        if set(line) <= set(self.columns):
            append(self.csv, _table(self.columns, [line]))
        else:
            self._rebuild_csv(lines(self.jsonl))

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Remove the lines after ``step``, and those that a kill or a full disk has damaged; these
        are told."""
        if not self.jsonl.exists():
            return
        ownership.confirm()
        rows, told = mend(self.jsonl, lambda row: row["step"] <= step)
        for text in told:
            warn(text)
        self._rebuild_csv(rows)

    def _rebuild_csv(self, rows: list[dict[str, Any]]) -> None:
        """Write the whole CSV anew, which a number that was not logged before makes necessary: the
        header is the first line.
        """
        self.columns = list(dict.fromkeys(key for row in rows for key in row))
        header = dict(zip(self.columns, self.columns))
        with atomic(self.csv) as temporary:
            temporary.write_text(_table(self.columns, [header, *rows]), newline="")


def _table(columns: list[str], rows: Iterable[dict[str, Any]]) -> str:
    """Rows as lines of a CSV file."""
    text = io.StringIO(newline="")
    csv.DictWriter(text, columns).writerows(rows)
    return text.getvalue()


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a ``metrics.jsonl``; none if there is no such file."""
    return json_lines(path)[0]
