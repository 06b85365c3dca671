"""Batch, Tokens, Mask, Output: the value objects at the seams; they check themselves once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

BOS, PAD, EOS, UNK = range(4)  # ids of <s>, <pad>, </s> and <unk>, as RoBERTa has them


@dataclass(frozen=True)
class Batch:
    """One micro-batch, as a datamodule yields it.

    ``ids``, ``lengths``, ``weight`` and ``cursor`` describe the batch to the host and never leave
    it: masks are functions of ``ids`` and ``lengths``, so every count is known without asking the
    device.

    Args:
        inputs: (B, S) float waveform at 16 kHz | (B, 3, H, W) float image | (B, T) int64 token ids
            | (B, C, S) float series.
        ids: (B,) int64 global sample ids, on the CPU.
        lengths: (B,) int64 valid length along S or T, on the CPU, or None if every row is full.
        labels: (B,) int64 class ids, or None; only probes and fine-tuning read them.
        weight: (B,) float, 0 for a sample that could not be decoded (kept so that the plan does not
            change), or None.
        epoch: the pass over the data that this micro-batch belongs to.
        cursor: where the stream stands after this batch (two integers per lane); travels with the
            batch so that the module can keep the one of the last *trained* batch.
        step_samples: samples of the whole optimizer step on all ranks, told by a rank's last batch
            of it; else 0.
    """

    inputs: Tensor
    ids: Tensor
    lengths: Tensor | None = None
    labels: Tensor | None = None
    weight: Tensor | None = None
    epoch: int = 0
    cursor: tuple[int, ...] = ()
    step_samples: int = 0

    def __post_init__(self) -> None:
        rows = self.inputs.shape[0]
        assert self.inputs.ndim >= 2, (
            f"inputs must be (B, S), (B, T), (B, C, S) or (B, 3, H, W), got "
            f"{tuple(self.inputs.shape)}"
        )
        for name in ("ids", "lengths", "labels", "weight"):
            value = getattr(self, name)
            assert value is None or value.shape == (rows,), (
                f"{name} must be ({rows},), got {tuple(value.shape)}"
            )

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with inputs and labels on ``device``; what describes it stays on the
        host."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, for asynchronous copies (called by
        ``DataLoader``)."""
        return self._map(Tensor.pin_memory)

    def _map(self, move) -> Batch:
        moved = {k: move(v) for k in ("inputs", "labels") if (v := getattr(self, k)) is not None}
        return replace(self, **moved)


@dataclass(frozen=True)
class Tokens:
    """A sequence of feature vectors, what a stem returns; everything after it is blind to the
    modality.

    Args:
        x: (B, T, D).
        grid: the token grid, ``(T,)`` for sequences or ``(rows, columns)`` for images; its product
            is T.
        valid: (B, T) bool, False at padding, or None if every position is real.
    """

    x: Tensor
    grid: tuple[int, ...]
    valid: Tensor | None = None

    def __post_init__(self) -> None:
        size = 1
        for side in self.grid:
            size *= side
        assert self.x.ndim == 3 and self.x.shape[1] == size, (
            f"x {tuple(self.x.shape)} does not fit grid {self.grid}"
        )
        assert self.valid is None or self.valid.shape == self.x.shape[:2]

    def repeat(self, clones: int) -> Tokens:
        """Row b becomes rows b*clones ... b*clones + clones - 1."""
        if clones == 1:
            return self
        valid = None if self.valid is None else self.valid.repeat_interleave(clones, 0)
        return Tokens(self.x.repeat_interleave(clones, 0), self.grid, valid)


@dataclass(frozen=True)
class Mask:
    """Which tokens the student must predict (``masked``), and which it gets to see when masked
    tokens are dropped.

    Built on the host (or wherever the sample ids are), with its index lists, and then sent to the
    device: no size in a training step depends on device memory. R = B * clones rows, N = number of
    masked positions of all rows.

    Args:
        masked: (R, T) bool, True where the student predicts the target. Enters the loss.
        index: (N,) int64 positions of True in the flattened ``masked``, ascending.
        kept: (R, K) int64 visible positions, ascending; None if rows differ in number (then tokens
            cannot be dropped).
        restore: (R, T) int64 with ``concat(visible, dropped)[restore]`` back in order; None with
            ``kept``.
        random: (R, T) float32 in [0, 1) where a random token replaces the input, -1 elsewhere
            (BERT-style masking); or None.
    """

    masked: Tensor
    index: Tensor
    kept: Tensor | None = None
    restore: Tensor | None = None
    random: Tensor | None = None

    @classmethod
    def of(
        cls, masked: Tensor, dropped: Tensor | None = None, random: Tensor | None = None
    ) -> Mask:
        """Build the index lists from booleans.

        Args:
            masked: (R, T) bool.
            dropped: (R, T) bool positions that the student does not see where tokens are dropped, a
                superset of ``masked`` (padding may be dropped without being predicted); ``masked``
                itself by default.
            random: see the class.
        """
        dropped = masked if dropped is None else dropped
        assert masked.dtype == torch.bool and masked.ndim == 2 and masked.shape == dropped.shape
        index = masked.flatten().nonzero().squeeze(1)
        hidden = dropped.sum(1)
        if not bool((hidden == hidden[0]).all()):
            return cls(masked, index, random=random)
        # A stable sort keeps both the visible and the dropped positions ascending, on every device.
        order = dropped.to(torch.int8).argsort(dim=1, stable=True)
        kept = order[:, : masked.shape[1] - int(hidden[0])]
        places = torch.arange(masked.shape[1], device=masked.device).expand_as(order)
        return cls(masked, index, kept, torch.empty_like(order).scatter_(1, order, places), random)

    def to(self, device: torch.device | str) -> Mask:
        """The same mask on ``device`` (asynchronous from page-locked or pageable host memory)."""

        def move(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.to(device, non_blocking=True)

        masked, index = (
            self.masked.to(device, non_blocking=True),
            self.index.to(device, non_blocking=True),
        )
        return Mask(masked, index, move(self.kept), move(self.restore), move(self.random))

    def without(self, rows: Tensor) -> Mask:
        """The same mask with nothing to predict in ``rows`` (R,) bool; what is visible stays as it
        is."""
        masked = self.masked & ~rows[:, None]
        return replace(self, masked=masked, index=masked.flatten().nonzero().squeeze(1))

    @property
    def count(self) -> int:
        """N, the number of predicted positions; known on the host."""
        return self.index.shape[0]


@dataclass(frozen=True)
class Output:
    """What one forward of the objective returns; nothing in it has been reduced over ranks or read
    by the host.

    Args:
        loss: () float32, *summed* over the predicted positions; divide by the step's global
            ``count``.
        count: number of predicted positions, on the host.
        pred: (N, D) float32 predictions, detached.
        target: (N, D) float32 regression targets.
        position: (N,) int64 token position of each row.
        losses: the summed, weighted terms of ``loss`` by name, detached.
    """

    loss: Tensor
    count: int
    pred: Tensor
    target: Tensor
    position: Tensor
    losses: dict[str, Tensor]
