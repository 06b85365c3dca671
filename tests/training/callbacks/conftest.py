"""A module with exactly what callbacks rely on, around a real encoder; its data; and a run of
both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from d2v_pretrain.checkpoint.lightning import AtomicCheckpointIO
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.objective.statistics import spread
from d2v_pretrain.training.callbacks.metrics import JsonlLogger
from d2v_pretrain.types import Batch, Output
from tests import tiny

WIDTH, TOKENS, ROWS = tiny.D, 12, 4


def encoder(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return tiny.encoder("text")


class ToyObjective(nn.Module):
    """A teacher that nothing trains, and the numbers that Health logs."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Module()
        self.teacher.encoder = encoder()

    def statistics(self, output: Output) -> dict[str, Tensor]:
        stats = {}
        for name, rows in (("target", output.target), ("pred", output.pred)):
            stats[f"{name}_std"], stats[f"{name}_position_std"] = spread(rows, output.position)
        return stats


class Toy(LightningModule):
    """Trains one number; its targets are ``healthy``, a function of ``position``, or
    ``constant``."""

    def __init__(self, targets: str = "healthy", nan_id: int = -1) -> None:
        super().__init__()
        self.objective = ToyObjective()
        self.number = nn.Parameter(torch.zeros(()))
        self.targets, self.nan_id = targets, nan_id
        self.log_metrics: dict[str, Tensor | float] = {}
        self.last_output: Output | None = None
        self.samples_seen = 0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = (self.number - batch.inputs.float().mean() / 40).square()
        if self.nan_id in batch.ids:
            loss = loss * torch.nan
        position = torch.arange(TOKENS).repeat(ROWS)
        noise = torch.randn(
            len(position), WIDTH, generator=torch.Generator().manual_seed(batch_idx)
        )
        pattern = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))[position]
        target = {"healthy": noise, "position": pattern + 0.01 * noise, "constant": 0.01 * noise}[
            self.targets
        ]
        self.last_output = Output(loss, len(position), noise.detach(), target, position, {})
        self.samples_seen += len(batch)
        self.log_metrics = {"loss": loss.detach(), "lr": 0.1}
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["samples"] = self.samples_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.samples_seen = checkpoint["samples"]


def batch(number: int, labelled: bool = False) -> Batch:
    """Token ids; the label is which half of the vocabulary they come from."""
    draw = torch.Generator().manual_seed(number)
    labels = torch.randint(2, (ROWS,), generator=draw)
    inputs = torch.randint(4, 20, (ROWS, TOKENS), generator=draw) + 18 * labels[:, None]
    ids = torch.arange(number * ROWS, (number + 1) * ROWS)
    lengths = torch.full((ROWS,), TOKENS // 2)
    return Batch(inputs, ids, lengths=lengths, labels=labels if labelled else None)


class Endless:
    """Batches without end; the n-th is always the same."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[Batch]:
        number = self.start
        while True:
            yield batch(number)
            number += 1


@dataclass
class Task:
    name: str = "halves"
    train: Iterable[Batch] = field(
        default_factory=lambda: [batch(n, labelled=True) for n in range(100, 115)]
    )
    test: Iterable[Batch] = field(
        default_factory=lambda: [batch(n, labelled=True) for n in range(200, 210)]
    )
    classes: int = 2
    raw_baseline: Callable[[Batch], Tensor] = lambda batch: batch.inputs[:, :2].float()
    raw_baseline_name: str = "first two ids"
    headline: str = "knn"
    note: str = "made up"


class Data(LightningDataModule):
    def __init__(self, start: int = 0, tasks: int = 1) -> None:
        super().__init__()
        self.start, self.tasks = start, tasks

    def train_dataloader(self) -> Endless:
        return Endless(self.start)

    def describe(self) -> str:
        return "toy tokens: 60 sequences"

    def probe_tasks(self) -> list[Task]:
        return [Task(name=f"halves{n}" if n else "halves") for n in range(self.tasks)]

    def health_batches(self, n: int) -> list[Batch]:
        return [batch(number) for number in range(300, 300 + n // ROWS)]


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Trainer]:
    """Train ``module`` to ``steps`` with ``callbacks``, logging into the test's folder; returns the
    trainer."""

    def run(
        module: Toy, steps: int, callbacks: list[Callback], data: Data | None = None, **more: Any
    ) -> Trainer:
        start = more.pop("ckpt_path", None)
        quiet: dict[str, Any] = {
            "enable_model_summary": False,
            "accelerator": "cpu",
            "enable_checkpointing": False,
        }
        quiet["plugins"] = [AtomicCheckpointIO()]
        # Without this Lightning adds a bar of its own.
        quiet["enable_progress_bar"] = any(
            hasattr(callback, "refresh_rate") for callback in callbacks
        )
        trainer = Trainer(
            max_steps=steps,
            logger=JsonlLogger(tmp_path),
            callbacks=callbacks,
            **(quiet | more),
        )
        trainer.fit(module, datamodule=data or Data(), ckpt_path=start)
        return trainer

    return run


@pytest.fixture
def toy() -> type[Toy]:
    return Toy


@pytest.fixture
def data() -> type[Data]:
    return Data


@pytest.fixture
def make_encoder() -> Callable[[int], Encoder]:
    return encoder
