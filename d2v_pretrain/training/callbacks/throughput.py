"""Samples a second, share of time spent waiting for data, padding waste, model FLOP utilisation,
time left."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from d2v_pretrain.training.callbacks.metrics import Meter
from d2v_pretrain.types import Batch

# Dense bf16 (fp16 on Volta and Turing) FLOP/s by data sheet, for names that hold all of the words.
# First match counts.
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
    """Dense bf16 FLOP/s of a GPU by its data sheet; None for CPUs and for GPUs not in the table."""
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
    """FLOPs that the method needs for one sample of a training step, whatever an implementation
    executes.

    Teacher forward over all tokens, student forward and backward (three times a forward) over the
    visible tokens of every clone: ``f(tokens) + 3 * clones * f(visible)`` with ``f(T) = T * (2 *
    parameters + 4 * T * width * depth)``.

    Args:
        parameters: of the blocks alone. depth, width: of the encoder. tokens: T per sample, extra
            tokens included.
        visible: tokens that the student sees in a row (T in data2vec 1). clones: M.
        other: stem, positional convolution and predictor, forward and backward.
    """

    def forward(length: int) -> float:
        return length * (2.0 * parameters + 4.0 * length * width * depth)

    return forward(tokens) + 3 * clones * forward(visible) + other


class Throughput(Meter):
    """Logs ``samples_per_s`` (all ranks), ``data_wait``, ``padding``, ``eta_s`` and, on a known
    GPU, ``mfu``.

    Each describes the stretch since the last logged step, the time left apart. ``data_wait`` is the
    share of wall time between the end of one micro-batch and the start of the next, seen from the
    host, stretches with a save left out; ``padding`` the share of the inputs that is padding.
    ``mfu`` is against the dense bf16 peak in any precision.

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
        """Start the clock."""
        self.start_time, self.start_step, self.batch_end = (
            time.perf_counter(),
            trainer.global_step,
            None,
        )
        self._reset(self.start_time)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The wait for ``batch`` is over."""
        if self.batch_end is not None:
            self.waited += time.perf_counter() - self.batch_end

    def count(self, trainer: Trainer, module: LightningModule, batch: Batch) -> None:
        """Lengths are summed where they are, and read only at logged steps."""
        self.samples += len(batch)
        full = batch.inputs.shape[0] * batch.inputs.shape[1]
        self.cells += full
        self.real = self.real + (full if batch.lengths is None else batch.lengths.detach().sum())
        self.batch_end = time.perf_counter()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """A save follows: it is not the loader's fault."""
        self.batch_end = None

    def observe(self, trainer: Trainer, module: LightningModule) -> dict[str, Tensor | float]:
        """See the class."""
        now = time.perf_counter()
        elapsed = max(now - self.since, 1e-9)
        rate = self.samples * trainer.world_size / elapsed
        out: dict[str, Tensor | float] = {"samples_per_s": rate, "data_wait": self.waited / elapsed}
        out["padding"] = 1 - self.real / max(self.cells, 1)
        if trainer.max_steps > 0:
            pace = (now - self.start_time) / max(trainer.global_step - self.start_step, 1)
            out["eta_s"] = pace * (trainer.max_steps - trainer.global_step)
        top = peak(module.device)
        if self.flops is not None and top is not None:
            out["mfu"] = rate * self.flops / (top * trainer.world_size)
        self._reset(now)
        return out
