"""Batch i as a pure function of i: the plan of an epoch, and an endless stream over it from a cursor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.rng import fold_in

Cursor = tuple[int, ...]
_ORDER = 1  # what the randomness is for: keeps the order apart from crops and masks of the same seed


class Slot(NamedTuple):
    """One micro-batch before it is read.

    ``ids`` (B,) int64 sample ids; ``epoch`` the pass over the data; ``cursor`` where the stream stands afterwards.
    """

    ids: np.ndarray
    epoch: int
    cursor: Cursor


class Plan:
    """Which samples make up which micro-batch: windows of samples, numbered endlessly over the epochs.

    Data that fits one index is one window an epoch, so a window's number is its epoch and the shuffle is global. Each
    sample is in exactly one micro-batch of a window; nothing is padded, repeated or dropped, so the last micro-batch
    may be smaller.

    Args:
        size: number of samples.
        seed: of the run.
        micro_batch: largest number of samples in a micro-batch.
        lengths: (size,) length of each sample, to put like with like; None if all are equal.
        max_tokens: longest length times rows of a micro-batch, in the unit of ``lengths``; None for no limit.
        buckets: how many length quantiles the samples are sorted into; more waste less padding and shuffle less.

    Raises:
        ConfigError: if there is no sample, or one that exceeds ``max_tokens`` alone.
    """

    def __init__(self, size: int, seed: int, micro_batch: int, lengths: np.ndarray | None = None,
                 max_tokens: int | None = None, buckets: int = 12) -> None:  # fmt: skip
        assert lengths is None or lengths.shape == (size,)
        if size < 1 or micro_batch < 1:
            raise ConfigError("micro_batch", micro_batch, f"must be at least 1, and so must the samples ({size})")
        if lengths is not None and max_tokens is not None and lengths.max() > max_tokens:
            raise ConfigError("max_tokens", max_tokens, f"is less than one sample of {lengths.max()}", "raise it")
        self.size, self.seed, self.micro_batch = size, seed, micro_batch
        self.lengths, self.max_tokens, self.buckets = lengths, max_tokens, buckets

    def epoch(self, window: int) -> int:
        """The pass over the data that a window belongs to."""
        return window

    def window(self, number: int) -> list[np.ndarray]:
        """The micro-batches of a window, each a (B,) array of sample ids; a pure function of the arguments."""
        rng = np.random.default_rng(fold_in(self.seed, _ORDER, number))
        order = rng.permutation(self.size)
        if self.lengths is None or (self.lengths == self.lengths[0]).all():
            return self._pack(order)
        by_length = order[np.argsort(self.lengths[order], kind="stable")]
        for bucket in np.array_split(by_length, self.buckets):
            rng.shuffle(bucket)  # a view: shuffles by_length in place
        batches = self._pack(by_length)
        return [batches[i] for i in rng.permutation(len(batches))]

    def _pack(self, order: np.ndarray) -> list[np.ndarray]:
        if self.lengths is None or self.max_tokens is None:
            return np.split(order, range(self.micro_batch, self.size, self.micro_batch))
        cuts, start, longest = [], 0, 0
        for i, length in enumerate(self.lengths[order].tolist()):
            longest = max(longest, length)
            if i - start == self.micro_batch or longest * (i - start + 1) > self.max_tokens:
                cuts.append(i)
                start, longest = i, length
        return np.split(order, cuts)


class Stream(Sampler[Slot]):
    """This rank's micro-batches, endlessly, from a cursor on.

    An optimizer step is ``slots`` micro-batches whatever the number of ranks: rank r trains the r-th part of them, so
    any world size that divides ``slots`` sees the same steps. A cursor is (window, next micro-batch in it). Each slot
    carries the cursor after itself; a rank's last slot of a step carries the cursor after the whole step, so that all
    ranks agree on it without talking.

    Args:
        plan: the order.
        slots: G, micro-batches of an optimizer step over all ranks.
        rank, world: which part is ours, of how many.
        cursor: where to start; (0, 0) is the beginning.

    Raises:
        ConfigError: if ``world`` does not divide ``slots``.
    """

    def __init__(self, plan: Plan, slots: int, rank: int = 0, world: int = 1, cursor: Cursor = (0, 0)) -> None:
        if slots % world:
            choices = ", ".join(str(w) for w in range(1, slots + 1) if slots % w == 0)
            rule = f"processes must divide the {slots} micro-batches of a step (global_batch / micro_batch)"
            raise ConfigError("trainer.devices", world, rule, f"use one of {choices}, or another global_batch")
        self.plan, self.slots, self.rank, self.world, self.cursor = plan, slots, rank, world, cursor

    def __iter__(self) -> Iterator[Slot]:
        walk, part = self._walk(), self.slots // self.world
        while True:
            step = [next(walk) for _ in range(self.slots)]
            *first, last = step[self.rank * part : (self.rank + 1) * part]
            yield from first
            yield last._replace(cursor=step[-1].cursor)

    def _walk(self) -> Iterator[Slot]:
        window, begin = self.cursor
        while True:
            batches = self.plan.window(window)
            for i in range(begin, len(batches)):
                after = (window, i + 1) if i + 1 < len(batches) else (window + 1, 0)
                yield Slot(batches[i], self.plan.epoch(window), after)
            window, begin = window + 1, 0
