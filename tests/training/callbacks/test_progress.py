"""progress.py: a bar over the steps of the run on a terminal, plain lines without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from rich.console import Console

from d2v_pretrain.training.callbacks.metrics import MetricsLog
from d2v_pretrain.training.callbacks.progress import Progress, summary
from d2v_pretrain.training.callbacks.throughput import Throughput

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*:FutureWarning"
)  # Lightning 2.6 with torch 2.11


def test_summary_is_for_people() -> None:
    values = {
        "loss": 0.51234,
        "lr": 1e-3,
        "samples_per_s": 1234.56,
        "data_wait": 0.021,
        "eta_s": 3725.4,
        "mfu": 0.4321,
    }
    assert summary(values) == {
        "loss": "0.512",
        "samples/s": "1234.6",
        "wait": "2%",
        "MFU": "43.2%",
        "left": "1:02:05",
    }


def test_without_a_terminal_logged_steps_are_lines(
    fit: Callable[..., Trainer], toy: type, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(toy(), 10, [MetricsLog(5), Throughput(), Progress()])
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in printed] == ["1/10", "5/10", "10/10"]
    assert all(
        "loss " in line and "samples/s" in line and "pad 50%" in line and "left" in line
        for line in printed
    )


class Watch(Callback):
    """What the bar says at the end."""

    def __init__(self, bar: Progress) -> None:
        self.bar, self.total, self.completed = bar, None, None

    def on_train_end(self, *_: Any) -> None:
        task = self.bar.train_progress_bar
        self.total, self.completed = task.total, task.completed


def test_the_bar_counts_optimizer_steps_of_the_whole_run(
    fit: Callable[..., Trainer],
    toy: type,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Console, "is_terminal", True)
    bar = Progress()
    watch = Watch(bar)
    fit(toy(), 6, [bar, MetricsLog(3), watch], accumulate_grad_batches=2)
    assert (watch.total, watch.completed) == (6, 6)
    assert bar.shown.keys() == {"loss"}
    printed = capsys.readouterr().out
    assert "6/6" in printed and "loss: 0." in printed and "step 6" not in printed
