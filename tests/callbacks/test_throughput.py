"""throughput.py: FLOPs against the published table, rates against a slow loader and known padding."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from d2v_pretrain.callbacks.metrics import MetricsLog, lines
from d2v_pretrain.callbacks.throughput import Throughput, flops_per_sample, peak

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning 2.6 with torch 2.11
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


class Slow:
    """Waits before every batch but the first."""

    def __init__(self, batches: Any, wait: float) -> None:
        self.batches, self.wait = batches, wait

    def __iter__(self) -> Iterator[Any]:
        for i, batch in enumerate(self.batches):
            time.sleep(self.wait if i else 0)
            yield batch


def test_rates_of_a_run_with_a_slow_loader(
    fit: Callable[..., Trainer], toy: type, data: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = data().train_dataloader()
    monkeypatch.setattr(data, "train_dataloader", lambda self: Slow(endless, 0.05))
    started = time.perf_counter()
    fit(toy(), 20, [MetricsLog(5), Throughput(flops_per_sample=1e9)])
    elapsed = time.perf_counter() - started
    read = lines(tmp_path / "metrics.jsonl")
    for line in read[1:]:
        assert line["padding"] == pytest.approx(0.5)  # six real tokens of twelve in every row
        assert 0.4 < line["data_wait"] <= 1
        assert 4 * 20 / elapsed * 0.5 < line["samples_per_s"] < 4 / 0.05
        assert "mfu" not in line  # no peak is known for a CPU
    assert read[-1]["eta_s"] == 0 and 0.05 * 10 < read[2]["eta_s"] < 10 * elapsed


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
