"""Throughput: samples per second, time spent waiting for data, padding, FLOP utilisation, time
left.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from d2v_pretrain.training.callbacks.metrics import Meter
from d2v_pretrain.types import Batch

# Dense bf16 FLOP/s (fp16 on Volta and Turing) by the data sheets, for GPUs whose name contains all
# of the words. The first match counts.
PEAKS = {
    ("B200",): 2250e12,
    ("H200",): 989e12,
    ("H100", "PCIe"): 756e12,
    ("H100",): 989e12,
    ("A100",): 312e12,
    ("A10",): 125e12,
    ("L40S",): 362e12,
    ("L4",): 121e12,
    ("V100",): 125e12,
    ("T4",): 65e12,
    ("4090",): 165e12,
    ("3090",): 71e12,
}


def peak(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s of a GPU by its data sheet; None for CPUs and GPUs not in the table."""
    if device.type != "cuda":
        return None
    words = set(torch.cuda.get_device_name(device).replace("-", " ").split())
    return next((flops for names, flops in PEAKS.items() if words.issuperset(names)), None)


def flops_per_sample(
    parameters: int,
    depth: int,
    width: int,
    tokens: int,
    visible: int,
    clones: int,
    other: float = 0.0,
) -> float:
    """FLOPs that the method needs for one sample of a training step, apart from how they are
    computed.

    A teacher forward over all tokens, and a student forward and backward (three times a forward)
    over the visible tokens of every clone: ``f(tokens) + 3 * clones * f(visible)`` with ``f(T) = T
    * (2 * parameters + 4 * T * width * depth)``.

    Args:
        parameters: number of parameters of the blocks alone.
        depth, width: of the encoder.
        tokens: tokens per sample, extra tokens included.
        visible: tokens that the student sees of each clone (all in data2vec 1).
        clones: number of masks per sample.
        other: FLOPs of stem, positional convolution and predictor, forward and backward.
    """

    def forward(length: int) -> float:
        return length * (2.0 * parameters + 4.0 * length * width * depth)

    return forward(tokens) + 3 * clones * forward(visible) + other


class Throughput(Meter):
    """Logs ``samples_per_s`` (all ranks), ``data_wait``, ``padding``, ``eta_s`` and, on a known
    GPU, ``mfu``.

    All but ``eta_s``, the seconds left, describe the time since the last logged step. ``data_wait``
    is the share of that time between the end of one micro-batch and the start of the next on the
    host, without saves, and without what meters do at logged steps, such as probes. ``padding`` is
    the share of the inputs that is padding. ``mfu`` is relative to the dense bf16 peak, whatever
    the precision of the run.

    Args:
        flops_per_sample: see the function of that name; None logs no ``mfu``.
    """

    def __init__(self, flops_per_sample: float | None = None) -> None:
        self.flops = flops_per_sample
        self.start_time = self.start_step = 0.0
        self.batch_end: float | None = None
        self._reset(0.0)

    def _reset(self, now: float) -> None:
        self.since, self.waited, self.samples, self.cells = now, 0.0, 0, 0
        self.real: Tensor | float = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start_time, self.start_step = time.perf_counter(), trainer.global_step
        self.batch_end = None
        self._reset(self.start_time)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.batch_end is not None:
            self.waited += time.perf_counter() - self.batch_end

    def count(self, trainer: Trainer, module: LightningModule, batch: Batch) -> None:
        """Sum up samples and lengths; the sum of lengths is only read at logged steps."""
        self.samples += len(batch)
        full = len(batch) * batch.inputs.shape[-1]
        self.cells += full
        self.real = self.real + (full if batch.lengths is None else batch.lengths.detach().sum())
        self.batch_end = time.perf_counter()

    def receive(self, trainer: Trainer, module: LightningModule, values: dict[str, float]) -> None:
        """Waiting begins anew: all meters have observed, which may have taken a while."""
        self.batch_end = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """The same, if ``MetricsLog`` stands before this callback: all meters and loggers have
        received."""
        self.batch_end = time.perf_counter()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Do not count the time of a save as waiting for data."""
        self.batch_end = None

    def observe(self, trainer: Trainer, module: LightningModule) -> dict[str, Tensor | float]:
        now = time.perf_counter()
        elapsed = max(now - self.since, 1e-9)
        speed = self.samples * trainer.world_size / elapsed
        out: dict[str, Tensor | float] = {"samples_per_s": speed}
        out["data_wait"] = self.waited / elapsed
        out["padding"] = 1 - self.real / max(self.cells, 1)
        if trainer.max_steps > 0:
            pace = (now - self.start_time) / max(trainer.global_step - self.start_step, 1)
            out["eta_s"] = pace * (trainer.max_steps - trainer.global_step)
        top = peak(module.device)
        if self.flops is not None and top is not None:
            out["mfu"] = speed * self.flops / (top * trainer.world_size)
        self._reset(now)
        return out
