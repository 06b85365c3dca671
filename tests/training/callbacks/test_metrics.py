"""metrics.py: which steps are logged, what a line holds, and that a killed and resumed run leaves
the same file."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from d2v_pretrain.training.callbacks.metrics import JsonlLogger, Meter, MetricsLog, lines

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:.*LeafSpec.*:FutureWarning"
    ),  # Lightning 2.6 with torch 2.11
    pytest.mark.filterwarnings(
        "ignore:.*dataloader is not resumable.*"
    ),  # the stream starts at the cursor by itself
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


class Counter(Meter):
    def __init__(self) -> None:
        self.counted, self.observed, self.received = 0, 0, []

    def count(self, trainer: Any, module: Any, batch: Any) -> None:
        self.counted += 1

    def observe(self, trainer: Any, module: Any) -> dict[str, Any]:
        self.observed += 1
        return {"counted": torch.tensor(self.counted), "half": 0.5}

    def receive(self, trainer: Any, module: Any, values: dict[str, float]) -> None:
        self.received.append(values["counted"])


@pytest.mark.parametrize("meter_first", [True, False])
def test_logs_first_due_and_last_step_wherever_the_meters_stand(
    fit: Callable[..., Trainer], toy: type, tmp_path: Path, meter_first: bool
) -> None:
    meter = Counter()
    callbacks = [meter, MetricsLog(4)] if meter_first else [MetricsLog(4), meter]
    fit(toy(), 10, callbacks, accumulate_grad_batches=2)
    read = lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in read] == [1, 4, 8, 10]
    assert meter.observed == 4 and meter.received == [2, 8, 16, 20]
    assert [line["samples"] for line in read] == [8, 32, 64, 80]
    assert read[0].keys() == {"step", "samples", "loss", "lr", "counted", "half"}


def test_csv_holds_what_jsonl_holds_and_takes_new_columns(tmp_path: Path) -> None:
    logger = JsonlLogger(tmp_path / "run")
    logger.log_metrics({"loss": 0.5}, 1)
    logger.log_metrics({"loss": 0.25}, 2)
    logger.log_metrics({"loss": float("nan"), "effective_rank": 7.0}, 3)
    logger.log_metrics({"loss": float("inf")}, 4)
    assert [
        json.loads(text) for text in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ] == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.25},
        {"step": 3, "loss": None, "effective_rank": 7.0},
        {"step": 4, "loss": None},
    ]
    with (tmp_path / "run/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["loss"] for row in rows] == ["0.5", "0.25", "", ""]
    assert [row["effective_rank"] for row in rows] == ["", "", "7.0", ""]


def test_rewind_drops_later_lines_and_a_torn_last_one(tmp_path: Path) -> None:
    logger = JsonlLogger(tmp_path)
    logger.rewind(3)  # nothing there yet
    for step in range(1, 6):
        logger.log_metrics({"loss": step / 10}, step)
    with logger.jsonl.open("a") as file:
        file.write('{"step": 6, "lo')
    fresh = JsonlLogger(tmp_path)
    fresh.rewind(3)
    fresh.log_metrics({"loss": 0.4}, 4)
    assert [line["step"] for line in lines(fresh.jsonl)] == [1, 2, 3, 4]
    assert len(fresh.csv.read_text().splitlines()) == 5


class KilledAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def test_a_resumed_run_leaves_the_same_file_without_gaps_or_repeats(
    fit: Callable[..., Trainer], toy: type, data: type, tmp_path: Path
) -> None:
    fit(toy(), 12, [MetricsLog(2)])
    whole = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").unlink()

    def saver() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)

    with pytest.raises(BaseException):  # noqa: B017 - Lightning turns the interrupt into an exit
        fit(toy(), 12, [MetricsLog(2), saver(), KilledAt(7)], enable_checkpointing=True)
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2, 4, 6]
    path = tmp_path / "step=4.ckpt"
    fit(
        toy(),
        12,
        [MetricsLog(2), saver()],
        data(start=4),
        ckpt_path=path,
        enable_checkpointing=True,
    )
    assert (tmp_path / "metrics.jsonl").read_text() == whole
