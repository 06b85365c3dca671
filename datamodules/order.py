"""EpochOrder: which samples make up which micro-batch; StepSampler: an endless walk over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.rng import Use, fold_in

Cursor = tuple[int, ...]
_CHUNK = 1 << 20  # lengths converted to Python numbers at a time, which limits the memory


class MicroBatch(NamedTuple):
    """One micro-batch before it is read.

    Args:
        ids: int64 ids of its samples.
        epoch: the pass over the data.
        cursor: where the sampler stands after it.
        step_samples: global number of samples in this optimizer step; set on the rank's last
            micro-batch of the step, 0 on the others.
    """

    ids: np.ndarray
    epoch: int
    cursor: Cursor
    step_samples: int = 0


class EpochOrder:
    """Which samples make up which micro-batch, in windows numbered endlessly over the epochs.

    Each epoch shuffles the shards and cuts them into windows. The samples of a window are shuffled,
    grouped by length and packed into micro-batches. By default all data are one window, so that the
    shuffle is global. Each sample is in exactly one micro-batch of an epoch; nothing is repeated or
    dropped, so that the last micro-batch of a window may be smaller.

    Args:
        shards: number of samples in each shard; ids are consecutive within a shard. An int, the
            number of all samples, if there are no shards.
        seed: of the run.
        micro_batch: largest number of samples in a micro-batch.
        lengths: length of each sample, to group samples of similar length; None if all are equal.
        max_tokens: largest size of a micro-batch, number of samples times length of the longest, in
            the unit of ``lengths``; None for no limit.
        buckets: number of length quantiles that the samples are sorted into; more buckets need less
            padding but shuffle less. None sorts by length, and shuffles samples of equal length
            alone (fairseq ``RawAudioDataset.ordered_indices``).
        window: number of shards in a window; None for all.

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
        buckets: int | None = 12,
        window: int | None = None,
    ) -> None:
        sizes = np.atleast_1d(np.asarray(shards, np.int64))
        self.ends, self.size = np.cumsum(sizes), int(sizes.sum())
        assert lengths is None or lengths.shape == (self.size,)
        if self.size < 1 or micro_batch < 1:
            rule = f"must be at least 1, and so must the number of samples, {self.size}"
            raise ConfigError("micro_batch", micro_batch, rule)
        if lengths is not None and max_tokens is not None and lengths.max() > max_tokens:
            rule = f"is less than one sample of {lengths.max()}"
            raise ConfigError("max_tokens", max_tokens, rule, "raise it")
        self.seed, self.micro_batch = seed, micro_batch
        self.lengths, self.max_tokens, self.buckets = lengths, max_tokens, buckets
        self.per_window = len(sizes) if window is None else min(window, len(sizes))
        self.windows = -(-len(sizes) // self.per_window)  # of an epoch

    def epoch(self, window: int) -> int:
        return window // self.windows

    def shards(self, window: int) -> np.ndarray:
        epoch, place = divmod(window, self.windows)
        if self.windows == 1:
            return np.arange(len(self.ends))
        rng = np.random.default_rng(fold_in(self.seed, Use.SHARDS, epoch))
        order = rng.permutation(len(self.ends))
        return order[place * self.per_window : (place + 1) * self.per_window]

    def window(self, number: int) -> list[np.ndarray]:
        """The micro-batches of a window, each an array of sample ids."""
        rng = np.random.default_rng(fold_in(self.seed, Use.ORDER, number))
        order = rng.permutation(self._ids(self.shards(number)))
        if not len(order):
            return []
        if self.lengths is not None and (self.lengths[order] != self.lengths[order[0]]).any():
            order = order[np.argsort(self.lengths[order], kind="stable")]
            for bucket in np.array_split(order, self.buckets) if self.buckets else ():
                rng.shuffle(bucket)  # bucket is a view: this shuffles a part of order
            batches = self.pack(order)
            return [batches[i] for i in rng.permutation(len(batches))]
        return self.pack(order)

    def _ids(self, shards: np.ndarray) -> np.ndarray:
        if len(shards) == len(self.ends):
            return np.arange(self.size)
        starts = np.concatenate([[0], self.ends])
        return np.concatenate([np.arange(starts[s], starts[s + 1]) for s in shards])

    def pack(self, order: np.ndarray) -> list[np.ndarray]:
        """Sample ids, (N,) in this order, as micro-batches."""
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
    """One of L readers: reader l reads the windows l, l + L, l + 2L, ...

    Args:
        plan: the order.
        readers: L, the number of readers.
        window, begin: the cursor: a window, and the number of the next micro-batch in it.
        prefetch: called before a window is read, with its shards and those of the reader's next
            window; None for nothing.
    """

    def __init__(
        self,
        plan: EpochOrder,
        readers: int,
        window: int,
        begin: int,
        prefetch: Callable[[np.ndarray], None] | None,
    ) -> None:
        self.plan, self.readers, self.prefetch = plan, readers, prefetch
        self.number, self.next = window, begin
        self.batches: list[np.ndarray] | None = None

    def step(self) -> tuple[np.ndarray, int]:
        """The next micro-batch and its epoch."""
        # A loop, because a window of empty shards has no micro-batch.
        while self.batches is None or self.next >= len(self.batches):
            if self.batches is not None:
                self.number, self.next = self.number + self.readers, 0
            if self.prefetch is not None:
                windows = (self.number, self.number + self.readers)
                self.prefetch(np.concatenate([self.plan.shards(window) for window in windows]))
            self.batches = self.plan.window(self.number)
        batch, epoch = self.batches[self.next], self.plan.epoch(self.number)
        self.next += 1
        return batch, epoch

    def cursor(self) -> Cursor:
        """The window and the micro-batch in it that come next."""
        if self.batches is not None and self.next >= len(self.batches):
            return self.number + self.readers, 0
        return self.number, self.next


class StepSampler(Sampler[MicroBatch]):
    """This rank's micro-batches, endlessly, from a cursor on.

    An optimizer step is ``micro_batches_per_step`` micro-batches whatever the number of ranks,
    ``micro_batches_per_step / readers`` from every reader. Rank r trains the r-th part of them, so
    any world size that divides ``micro_batches_per_step`` sees the same steps. A cursor is (window,
    next micro-batch in it) for every reader. A rank's last micro-batch of a step carries the cursor
    after the whole step. All ranks know it without communication, because each of them walks all
    readers, at 1 to 2 microseconds per sample.

    Args:
        plan: the order.
        micro_batches_per_step: micro-batches of an optimizer step over all ranks.
        rank, world: number of this process, and of all processes.
        cursor: where to start; () is the beginning.
        readers: a divisor of ``micro_batches_per_step``, see ``readers_for``.
        prefetch: see ``Reader``; called only for readers whose micro-batches this rank trains on.

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
            divisors = [
                n for n in range(1, micro_batches_per_step + 1) if micro_batches_per_step % n == 0
            ]
            rule = (
                f"processes must divide the {micro_batches_per_step} micro-batches of a step "
                "(global_batch / micro_batch)"
            )
            remedy = f"use one of {', '.join(map(str, divisors))}, or another global_batch"
            raise ConfigError("trainer.devices", world, rule, remedy)
        assert micro_batches_per_step % readers == 0, (micro_batches_per_step, readers)
        assert len(cursor) in (0, 2 * readers), (cursor, readers)
        self.plan, self.micro_batches_per_step = plan, micro_batches_per_step
        self.readers, self.prefetch = readers, prefetch
        self.cursor = cursor or tuple(n for reader in range(readers) for n in (reader, 0))
        part = micro_batches_per_step // world
        self.ours = range(rank * part, (rank + 1) * part)

    def __iter__(self) -> Iterator[MicroBatch]:
        # The micro-batches of a reader are neighbours in a step, so that few ranks read a shard.
        each = self.micro_batches_per_step // self.readers
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
            samples = sum(len(batch.ids) for batch in step)
            yield last._replace(cursor=step[-1].cursor, step_samples=samples)


def readers_for(plan: EpochOrder, micro_batches_per_step: int) -> int:
    """How many readers share an epoch: the largest divisor of ``micro_batches_per_step`` that
    leaves every reader at least 8 windows (blocks of samples that are read together) of the epoch.

    Readers with fewer windows would finish the epoch at very different times. An epoch of fewer
    than 8 windows has one reader.
    """
    divisors = (n for n in range(1, micro_batches_per_step + 1) if micro_batches_per_step % n == 0)
    return max((n for n in divisors if plan.windows >= 8 * n), default=1)
