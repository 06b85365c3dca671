"""Batch i as a pure function of i: the plan of an epoch, and an endless stream over it from a
cursor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.rng import fold_in

Cursor = tuple[int, ...]
_ORDER, _SHARDS = (
    1,
    3,
)  # what the randomness is for: keeps orders apart from crops and masks of the same seed
_CHUNK = 1 << 20  # lengths that are Python numbers at a time


class MicroBatch(NamedTuple):
    """One micro-batch before it is read.

    ``ids`` (B,) int64 sample ids; ``epoch`` the pass over the data; ``cursor`` where the stream
    stands afterwards; ``step_samples`` how many samples the optimizer step has on all ranks, told
    by a rank's last micro-batch of it, else 0."""

    ids: np.ndarray
    epoch: int
    cursor: Cursor
    step_samples: int = 0


class EpochOrder:
    """Which samples make up which micro-batch: windows of shards, numbered endlessly over the
    epochs.

    An epoch shuffles the shards and cuts them into windows; the samples of a window are shuffled,
    put together by length and packed. By default all data is one window, so the shuffle is global.
    Each sample is in exactly one micro-batch of an epoch; nothing is padded, repeated or dropped,
    so the last micro-batch of a window may be smaller.

    Args:
        shards: (n,) number of samples in each shard, whose ids are consecutive; an int where there
            are no shards.
        seed: of the run.
        micro_batch: largest number of samples in a micro-batch.
        lengths: (N,) length of each sample, to put like with like; None if all are equal.
        max_tokens: longest length times rows of a micro-batch, in the unit of ``lengths``; None for
            no limit.
        buckets: how many length quantiles the samples are sorted into; more waste less padding and
            shuffle less.
        window: shards of a window; None for all.

    Raises:
        ConfigError: if there is no sample, or one that exceeds ``max_tokens`` alone.
    """

    def __init__(
        self,
        shards: int | Sequence[int] | np.ndarray,
        seed: int,
        micro_batch: int,
        lengths: np.ndarray | None = None,
        max_tokens: int | None = None,
        buckets: int = 12,
        window: int | None = None,
    ) -> None:
        sizes = np.atleast_1d(np.asarray(shards, np.int64))
        self.ends, self.size = np.cumsum(sizes), int(sizes.sum())
        assert lengths is None or lengths.shape == (self.size,)
        if self.size < 1 or micro_batch < 1:
            raise ConfigError(
                "micro_batch",
                micro_batch,
                f"must be at least 1, and so must the samples ({self.size})",
            )
        if lengths is not None and max_tokens is not None and lengths.max() > max_tokens:
            raise ConfigError(
                "max_tokens", max_tokens, f"is less than one sample of {lengths.max()}", "raise it"
            )
        self.seed, self.micro_batch = seed, micro_batch
        self.lengths, self.max_tokens, self.buckets = lengths, max_tokens, buckets
        self.per_window = len(sizes) if window is None else min(window, len(sizes))
        self.windows = -(-len(sizes) // self.per_window)  # of an epoch

    def epoch(self, window: int) -> int:
        """The pass over the data that a window belongs to."""
        return window // self.windows

    def shards(self, window: int) -> np.ndarray:
        """The shards of a window."""
        epoch, place = divmod(window, self.windows)
        if self.windows == 1:
            return np.arange(len(self.ends))
        order = np.random.default_rng(fold_in(self.seed, _SHARDS, epoch)).permutation(
            len(self.ends)
        )
        return order[place * self.per_window : (place + 1) * self.per_window]

    def window(self, number: int) -> list[np.ndarray]:
        """The micro-batches of a window, each a (B,) array of sample ids; a pure function of the
        arguments."""
        rng = np.random.default_rng(fold_in(self.seed, _ORDER, number))
        order = rng.permutation(self._ids(self.shards(number)))
        if not len(order):
            return []
        if self.lengths is not None and (self.lengths[order] != self.lengths[order[0]]).any():
            order = order[np.argsort(self.lengths[order], kind="stable")]
            for bucket in np.array_split(order, self.buckets):
                rng.shuffle(bucket)  # a view: shuffles order in place
            batches = self._pack(order)
            return [batches[i] for i in rng.permutation(len(batches))]
        return self._pack(order)

    def _ids(self, shards: np.ndarray) -> np.ndarray:
        if len(shards) == len(self.ends):
            return np.arange(self.size)
        starts = np.concatenate([[0], self.ends])
        return np.concatenate([np.arange(starts[s], starts[s + 1]) for s in shards])

    def _pack(self, order: np.ndarray) -> list[np.ndarray]:
        if self.lengths is None or self.max_tokens is None:
            return np.split(order, range(self.micro_batch, len(order), self.micro_batch))
        cuts, start, longest = [], 0, 0
        for begin in range(0, len(order), _CHUNK):
            for i, length in enumerate(self.lengths[order[begin : begin + _CHUNK]].tolist(), begin):
                longest = max(longest, length)
                if i - start == self.micro_batch or longest * (i - start + 1) > self.max_tokens:
                    cuts.append(i)
                    start, longest = i, length
        return np.split(order, cuts)


class Reader:
    """One walker through every L-th window of a plan: reader l reads the windows l, l + L, l + 2L,
    ...

    Args:
        plan: the order. readers: L.
        window, begin: the cursor: the window it stands in, and the next micro-batch there.
        prefetch: told the shards of a window before it is read, and those of the reader's next one.
    """

    def __init__(
        self,
        plan: EpochOrder,
        readers: int,
        window: int,
        begin: int,
        prefetch: Callable[[np.ndarray], None] | None,
    ) -> None:
        self.plan, self.readers, self.number, self.next, self.prefetch = (
            plan,
            readers,
            window,
            begin,
            prefetch,
        )
        self.batches: list[np.ndarray] | None = None

    def step(self) -> tuple[np.ndarray, int]:
        """The next micro-batch and its epoch."""
        while self.batches is None or self.next >= len(
            self.batches
        ):  # a window of empty shards has none
            if self.batches is not None:
                self.number, self.next = self.number + self.readers, 0
            self._enter()
            assert self.batches is not None
        batch, epoch = self.batches[self.next], self.plan.epoch(self.number)
        self.next += 1
        return batch, epoch

    def _enter(self) -> None:
        if self.prefetch is not None:
            self.prefetch(
                np.concatenate(
                    [self.plan.shards(self.number), self.plan.shards(self.number + self.readers)]
                )
            )
        self.batches = self.plan.window(self.number)

    def cursor(self) -> Cursor:
        """Where it stands; behind the last micro-batch of a window that is the next window."""
        if self.batches is not None and self.next >= len(self.batches):
            return self.number + self.readers, 0
        return self.number, self.next


class StepSampler(Sampler[MicroBatch]):
    """This rank's micro-batches, endlessly, from a cursor on.

    An optimizer step is ``micro_batches_per_step`` micro-batches whatever the number of ranks,
    ``micro_batches_per_step / readers`` from every reader: rank r trains the r-th part of them, so
    any world size that divides ``micro_batches_per_step`` sees the same steps. A cursor is (window,
    next micro-batch in it) for every reader. A rank's last micro-batch of a step carries the cursor
    after the whole step, so that all ranks agree on it without talking: each of them walks all
    readers, at a microsecond or two a sample.

    Args:
        plan: the order.
        micro_batches_per_step: G, micro-batches of an optimizer step over all ranks.
        rank, world: which part is ours, of how many.
        cursor: where to start; () is the beginning.
        readers: L, a divisor of ``micro_batches_per_step``. With one window an epoch there is no
            use for more than one.
        prefetch: see ``Reader``; called for readers that this rank reads.

    Raises:
        ConfigError: if ``world`` does not divide ``micro_batches_per_step``.
    """

    def __init__(
        self,
        plan: EpochOrder,
        micro_batches_per_step: int,
        rank: int = 0,
        world: int = 1,
        cursor: Cursor = (),
        readers: int = 1,
        prefetch: Callable[[np.ndarray], None] | None = None,
    ) -> None:
        if micro_batches_per_step % world:
            choices = ", ".join(
                str(w)
                for w in range(1, micro_batches_per_step + 1)
                if micro_batches_per_step % w == 0
            )
            rule = f"processes must divide the {micro_batches_per_step} micro-batches of a step (global_batch / micro_batch)"
            raise ConfigError(
                "trainer.devices", world, rule, f"use one of {choices}, or another global_batch"
            )
        assert micro_batches_per_step % readers == 0 and len(cursor) in (0, 2 * readers), (
            micro_batches_per_step,
            readers,
            cursor,
        )
        self.plan, self.micro_batches_per_step, self.readers, self.prefetch = (
            plan,
            micro_batches_per_step,
            readers,
            prefetch,
        )
        self.cursor = cursor or tuple(n for reader in range(readers) for n in (reader, 0))
        part = micro_batches_per_step // world
        self.ours = range(rank * part, (rank + 1) * part)

    def __iter__(self) -> Iterator[MicroBatch]:
        each = (
            self.micro_batches_per_step // self.readers
        )  # a reader's micro-batches are neighbours, so that few ranks read a shard
        mine = {index // each for index in self.ours}
        readers = [
            Reader(
                self.plan,
                self.readers,
                self.cursor[2 * i],
                self.cursor[2 * i + 1],
                self.prefetch if i in mine else None,
            )
            for i in range(self.readers)
        ]
        cursor = list(self.cursor)
        while True:
            step = []
            for index in range(self.micro_batches_per_step):
                reader = index // each
                batch, epoch = readers[reader].step()
                cursor[2 * reader : 2 * reader + 2] = readers[reader].cursor()
                step.append(MicroBatch(batch, epoch, tuple(cursor)))
            *first, last = [step[index] for index in self.ours]
            yield from first
            yield last._replace(
                cursor=step[-1].cursor, step_samples=sum(len(batch.ids) for batch in step)
            )


def readers_for(plan: EpochOrder, micro_batches_per_step: int) -> int:
    """L: the largest divisor of ``micro_batches_per_step`` that leaves every reader at least 8
    windows an epoch, else 1.

    With fewer, readers would run epochs prefetch of one another.
    """
    return max(
        (
            n
            for n in range(1, micro_batches_per_step + 1)
            if micro_batches_per_step % n == 0 and plan.windows >= 8 * n
        ),
        default=1,
    )
