"""Batch, Tokens, Mask, Output, ProbeTask: the values that packages pass to one another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

BOS, PAD, EOS, UNK = range(4)  # ids of <s>, <pad>, </s> and <unk>, as RoBERTa has them


@dataclass(frozen=True)
class Batch:
    """One micro-batch, as a datamodule yields it.

    Only ``inputs`` and ``labels`` are moved to the device. The other fields stay on the host, where
    masks are drawn from ``ids`` and ``lengths``: the number of masked positions is then known
    without waiting for the device.

    Args:
        inputs: B samples: (B, S) float waveforms of S audio samples at 16 kHz, (B, T) int64 token
            ids, (B, C, H, W) float images (channels, height, width), or (B, C, S) float signals of
            C channels and S steps.
        ids: (B,) int64 global sample ids, on the CPU.
        lengths: (B,) int64 valid length along the last axis (S or T), on the CPU; None if every row
            is full.
        labels: (B,) int64 class ids, or None. Only probes and fine-tuning read them.
        weight: (B,) float, or None for 1 everywhere. A sample that could not be decoded has 0: it
            stays in the batch, so that the order of the others does not change, but does not
            contribute to the loss.
        epoch: the pass over the data that this micro-batch belongs to.
        cursor: position in the data after this micro-batch (two integers per reader). It travels
            with the batch, so that the module can save the position of the last *trained* batch.
        step_samples: global number of samples in this optimizer step; set on the rank's last
            micro-batch of the step, 0 on the others.
        items: number of stored items that were read for it: B, or more where a sample is joined
            from several.
        bad: how many of these items could not be used.
        fault: why nothing can be read any more, such as a folder that is gone; "" if reading works.
            Then all weights are 0, and training must stop before it saves.
    """

    inputs: Tensor
    ids: Tensor
    lengths: Tensor | None = None
    labels: Tensor | None = None
    weight: Tensor | None = None
    epoch: int = 0
    cursor: tuple[int, ...] = ()
    step_samples: int = 0
    items: int = 0
    bad: int = 0
    fault: str = ""

    def __post_init__(self) -> None:
        rows = self.inputs.shape[0]
        assert self.inputs.ndim in (2, 3, 4), (
            "inputs must be (B, S), (B, T), (B, C, S) or (B, C, H, W), "
            f"got {tuple(self.inputs.shape)}"
        )
        for name in ("ids", "lengths", "labels", "weight"):
            value = getattr(self, name)
            assert value is None or value.shape == (rows,), (
                f"{name} must be ({rows},), got {tuple(value.shape)}"
            )

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with inputs and labels on ``device``; the other fields stay on the
        host.
        """
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, for asynchronous copies (``DataLoader`` calls
        this).
        """
        return self._map(Tensor.pin_memory)

    def _map(self, move: Callable[[Tensor], Tensor]) -> Batch:
        labels = None if self.labels is None else move(self.labels)
        return replace(self, inputs=move(self.inputs), labels=labels)


@dataclass(frozen=True)
class Tokens:
    """A sequence of feature vectors, as a stem returns it. The code that reads it does not depend
    on the modality.

    Args:
        x: (B, T, D): B rows of T tokens, each a vector of D numbers.
        grid: the token grid, ``(T,)`` for sequences or ``(rows, columns)`` for images; its product
            is T.
        valid: (B, T) bool, False at padding, or None if every position is real.
    """

    x: Tensor
    grid: tuple[int, ...]
    valid: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.x.ndim == 3 and self.x.shape[1] == math.prod(self.grid), (
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
    """Which tokens the student must predict (``masked``), and which ones it sees when masked tokens
    are dropped.

    It is built on the device of the sample ids, which is the host in training, together with its
    index lists, and then copied to the training device: every tensor size of a training step is
    known on the host. B samples of T tokens give R = B * clones rows; N is the number of masked
    positions in all rows.

    Args:
        masked: (R, T) bool, True where the student predicts the target. Enters the loss.
        index: (N,) int64 positions of True in the flattened ``masked``, ascending.
        kept: (R, K) int64 visible positions, ascending; None if the number K of visible positions
            differs between rows (tokens then cannot be dropped).
        restore: (R, T) int64 such that ``concat(visible, dropped)[restore]`` is in the original
            order; None if ``kept`` is None.
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
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {k: t.to(device, non_blocking=True) for k, t in tensors.items() if t is not None}
        return Mask(**moved)

    def without(self, rows: Tensor) -> Mask:
        """The same mask with nothing to predict in ``rows`` (R,) bool; visible tokens stay
        visible.
        """
        masked = self.masked & ~rows[:, None]
        return replace(self, masked=masked, index=masked.flatten().nonzero().squeeze(1))

    @property
    def count(self) -> int:
        """N, the number of predicted positions; known on the host."""
        return self.index.shape[0]


@dataclass(frozen=True)
class Output:
    """What one forward of an objective returns, for this rank's micro-batch alone.

    Args:
        loss_sum: () float32, summed over the predicted positions. A step of several micro-batches
            or ranks adds these sums up and divides by the sum of their ``count``.
        count: number of predicted positions, on the host.
        pred: (N, D) float32 predictions, detached: D numbers for each of the N predicted positions.
        target: (N, D) float32 targets.
        position: (N,) int64 position in the token grid of each predicted position.
        terms: what ``loss_sum`` adds up (each weighted and summed over positions) by name,
            detached.
    """

    loss_sum: Tensor
    count: int
    pred: Tensor
    target: Tensor
    position: Tensor
    terms: dict[str, Tensor]

    @property
    def loss(self) -> Tensor:
        """() float32 mean over the predicted positions; 0 if there are none."""
        return self.loss_sum / max(self.count, 1)


@dataclass(frozen=True)
class ProbeTask:
    """A classification task on which frozen features are compared.

    Args:
        name: what is classified ("words", "shapes", "order").
        train, test: batches with labels, the same at each iteration. No speaker, image or document
            of ``test`` occurs in ``train`` or in pretraining.
        classes: number of classes; labels are 0 ... classes - 1.
        raw_baseline: maps a batch of B samples to (B, F) features that are not learned, such as
            pixels. Learned features should do better than these.
        raw_baseline_name: what the features of ``raw_baseline`` are ("log-mel mean + std").
        headline: the metric to quote: ``few_shot``, ``linear`` or ``knn``.
        note: what a reader of the printed table should know about the task, or "".
    """

    name: str
    train: Iterable[Batch]
    test: Iterable[Batch]
    classes: int
    raw_baseline: Callable[[Batch], Tensor]
    raw_baseline_name: str
    headline: str
    note: str
