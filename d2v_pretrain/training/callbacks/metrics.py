"""The one place where training numbers leave the device: MetricsLog, its Meters, and the JSONL +
CSV logger."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from d2v_pretrain.checkpoint.file import write_text
from d2v_pretrain.types import Batch


class Meter(Callback):
    """A callback that takes part in logged steps; ``MetricsLog`` calls it, in the trainer's order,
    on every rank."""

    def count(self, trainer: Trainer, module: LightningModule, batch: Batch) -> None:
        """After every micro-batch: note what costs nothing; nothing that is on the device may be
        read."""

    def observe(self, trainer: Trainer, module: LightningModule) -> dict[str, Tensor | float]:
        """Numbers to log, as () tensors wherever they are (nobody has waited for the device yet) or
        floats."""
        return {}

    def receive(self, trainer: Trainer, module: LightningModule, values: dict[str, float]) -> None:
        """All numbers of this step, averaged over ranks, on the host."""


class MetricsLog(Callback):
    """Every ``log_every`` steps: collect from module and meters, wait for the device once, give to
    all loggers.

    Between those steps nothing is read, so nothing makes the host wait. Which steps are logged is a
    function of the step alone (the first, every ``log_every``-th, the last), the same in a resumed
    run. The line of a step is written before Lightning saves that step's checkpoint (checkpoint
    callbacks run last), so a kill leaves no gap.

    The module has ``log_metrics: dict[str, Tensor | float]``, the numbers of its last step, and
    ``samples_seen``.

    Args:
        log_every: optimizer steps between lines.
    """

    def __init__(self, log_every: int) -> None:
        self.log_every, self.seen = log_every, 0
        self.meters: list[Meter] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the meters, wherever they stand in the trainer's list."""
        self.meters = [c for c in trainer.callbacks if isinstance(c, Meter)]  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take back the lines that a killed run wrote after the checkpoint that this one starts
        from."""
        self.seen = trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, JsonlLogger):
                logger.rewind(self.seen)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Log if this micro-batch ended an optimizer step that is due."""
        for meter in self.meters:
            meter.count(trainer, pl_module, batch)
        step = trainer.global_step
        if step == self.seen:
            return
        self.seen = step
        if step == 1 or step % self.log_every == 0 or step == trainer.max_steps:
            self._log(trainer, pl_module, step)

    def _log(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        collected: dict[str, Tensor | float] = dict(module.log_metrics)  # type: ignore[arg-type]
        for meter in self.meters:
            collected |= meter.observe(trainer, module)
        samples: int = module.samples_seen  # type: ignore[assignment]
        values: dict[str, float] = {"samples": samples} | read(collected, trainer, module.device)
        for meter in self.meters:
            meter.receive(trainer, module, values)
        for logger in trainer.loggers:
            logger.log_metrics(values, step)


def read(
    collected: dict[str, Tensor | float], trainer: Trainer, device: torch.device
) -> dict[str, float]:
    """Mean over ranks of every number, by one collective and one wait for the device.

    float64, so that a count of samples survives; float32 where the device knows no float64.

    Args:
        collected: () tensors on ``device`` or the host, and numbers; the same keys on every rank.
    """
    dtype = torch.float32 if device.type == "mps" else torch.float64
    host = torch.tensor(
        [0.0 if isinstance(v, Tensor) else v for v in collected.values()], dtype=dtype
    )
    vector = host.to(device, non_blocking=True)
    for i, value in enumerate(collected.values()):
        if isinstance(value, Tensor):
            vector[i] = value.detach().to(device, dtype, non_blocking=True)
    reduced = trainer.strategy.reduce(vector, reduce_op="mean")
    assert isinstance(reduced, Tensor)
    return dict(zip(collected, reduced.tolist()))


class JsonlLogger(Logger):
    """``metrics.jsonl``, the truth, and ``metrics.csv``, a view of it for spreadsheets, in the
    run's folder.

    One line a logged step, ``{"step": ..., "loss": ..., ...}``, appended and handed to the system
    at once, so that a killed process loses none. What JSON cannot hold (nan, inf) is null. Only
    rank 0 writes.

    Args:
        folder: the run's folder; made at the first line.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.jsonl, self.csv = Path(folder) / "metrics.jsonl", Path(folder) / "metrics.csv"
        self.columns: list[str] = []

    @property
    def name(self) -> str:
        """The run's name."""
        return self.jsonl.parent.name

    @property
    def version(self) -> str:
        """Empty: a run has a name and no versions."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.jsonl.parent)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the resolved configuration is in the run's folder already."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one line for ``step``."""
        assert step is not None, "a line needs its step"
        line = {"step": step} | {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        self.jsonl.parent.mkdir(parents=True, exist_ok=True)
        with self.jsonl.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if set(line) <= set(self.columns):
            with self.csv.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(line)
        else:
            self._rebuild_csv()

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop the lines after ``step``, and a last one that a kill cut in half."""
        if not self.jsonl.exists():
            return
        text = "".join(
            json.dumps(line) + "\n" for line in lines(self.jsonl) if line["step"] <= step
        )
        if text != self.jsonl.read_text():
            write_text(text, self.jsonl)
        self._rebuild_csv()

    def _rebuild_csv(self) -> None:
        """Some numbers come now and then, and a CSV's header is its first line: a new one means a
        new file."""
        rows = lines(self.jsonl)
        self.columns = list(dict.fromkeys(key for row in rows for key in row))
        with self.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a ``metrics.jsonl``; a torn last one (no newline at its end) is left
    out."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]
