"""throughput.py: FLOPs against the published table, rates against a slow loader and known
padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from d2v_pretrain.checkpoint.lightning import AtomicCheckpointIO
from d2v_pretrain.training.callbacks import throughput
from d2v_pretrain.training.callbacks.metrics import Meter, MetricsLog, lines
from d2v_pretrain.training.callbacks.throughput import Throughput, flops_per_sample, peak

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*:FutureWarning"
)  # Lightning 2.6 with torch 2.11
BASE, LARGE = 12 * 12 * 768**2, 24 * 12 * 1024**2


@pytest.mark.parametrize(
    ("arguments", "gflop", "blocks_and_teacher"),
    [
        ((BASE, 12, 768, 197, 197, 1), 141, 0.99),  # vision, data2vec 1
        ((LARGE, 24, 1024, 197, 197, 1), 493, 0.99),
        ((BASE, 12, 768, 512, 512, 1), 389, 1.0),  # text, data2vec 1
        ((BASE, 12, 768, 499, 499, 1), 539, 0.70),  # audio, data2vec 1: the rest is the conv stem
        ((BASE, 12, 768, 197, 40, 16), 413, 0.88),  # image, data2vec 2: the rest is the decoder
        ((BASE, 12, 768, 499, 250, 8), 1419, 0.83),  # audio, data2vec 2
    ],
)
def test_flops_agree_with_the_study_of_the_published_code(
    arguments: tuple[int, ...], gflop: float, blocks_and_teacher: float
) -> None:
    assert flops_per_sample(*arguments) / 1e9 == pytest.approx(gflop * blocks_and_teacher, rel=0.03)
    assert flops_per_sample(*arguments, other=1e9) == flops_per_sample(*arguments) + 1e9


class Clock:
    """Stands still unless told."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Slow:
    """Three seconds a batch."""

    def __init__(self, batches: Any, clock: Clock) -> None:
        self.batches, self.clock = batches, clock

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            self.clock.now += 3
            yield batch


def test_rates_of_a_run_with_a_slow_loader(
    fit: Callable[..., Trainer],
    toy: type,
    data: type,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, endless, train = Clock(), data().train_dataloader(), toy.training_step

    def slow_step(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        clock.now += 1
        return train(self, batch, batch_idx)

    monkeypatch.setattr(throughput, "time", clock)
    monkeypatch.setattr(data, "train_dataloader", lambda self: Slow(endless, clock))
    monkeypatch.setattr(toy, "training_step", slow_step)
    fit(toy(), 20, [MetricsLog(5), Throughput(flops_per_sample=1e9)])
    read = lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in read] == [1, 5, 10, 15, 20]
    for line in read[1:]:
        assert line["padding"] == pytest.approx(0.5)  # six real tokens of twelve in every row
        assert line["data_wait"] == pytest.approx(0.75)
        assert line["samples_per_s"] == pytest.approx(1.0)  # four samples in four seconds
        assert "mfu" not in line  # no peak is known for a CPU
    assert (
        read[2]["eta_s"] == pytest.approx(40, rel=0.1) and read[-1]["eta_s"] == 0
    )  # ten more steps


def test_a_save_is_not_the_loaders_fault(
    fit: Callable[..., Trainer], toy: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    save = AtomicCheckpointIO.save_checkpoint

    def slow_save(self: Any, *arguments: Any, **options: Any) -> None:
        clock.now += 7
        save(self, *arguments, **options)

    monkeypatch.setattr(throughput, "time", clock)
    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", slow_save)
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    fit(toy(), 8, [MetricsLog(4), Throughput(), saver], enable_checkpointing=True)
    last = lines(tmp_path / "metrics.jsonl")[-1]
    assert last["data_wait"] == 0 and last["samples_per_s"] == pytest.approx(16 / 14)


class SlowMeter(Meter):
    """A probe that takes 11 seconds, and 5 more to report."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def observe(self, trainer: Any, module: Any) -> dict[str, float]:
        self.clock.now += 11
        return {}

    def receive(self, trainer: Any, module: Any, values: dict[str, float]) -> None:
        self.clock.now += 5


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_probe_is_not_the_loaders_fault(
    place: int,
    fit: Callable[..., Trainer],
    toy: type,
    data: type,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A loader that takes 3 s a batch is told as such, whatever the probe before it took."""
    clock, endless = Clock(), data().train_dataloader()
    monkeypatch.setattr(throughput, "time", clock)
    monkeypatch.setattr(data, "train_dataloader", lambda self: Slow(endless, clock))
    callbacks: list[Any] = [MetricsLog(2), Throughput()]
    callbacks.insert(place, SlowMeter(clock))
    fit(toy(), 8, callbacks)
    read = lines(tmp_path / "metrics.jsonl")
    waited = [line["data_wait"] * 8 / line["samples_per_s"] for line in read[1:]]
    assert [line["step"] for line in read] == [1, 2, 4, 6, 8]
    assert waited[1:] == pytest.approx([6, 6, 6])  # seconds in two steps of four samples each
    assert all(line["samples_per_s"] == pytest.approx(8 / 22) for line in read[2:])


def test_peaks_go_by_whole_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak(torch.device("cpu")) is None
    names = {
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA A10": 125e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA GeForce RTX 4090": 165e12,
        "NVIDIA L4": 121e12,
        "NVIDIA L40S": 362e12,
        "Some Card": None,
    }
    for name, flops in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak(torch.device("cuda")) == flops
