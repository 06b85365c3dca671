"""PretrainDataModule: the stream over a transform of any modality, read by ordinary DataLoader
workers."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial
from typing import Protocol

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.types import Batch, ProbeTask
from datamodules.datasets.probe_tasks import collate
from datamodules.order import Cursor, EpochOrder, MicroBatch, StepSampler, readers_for


class Transform(Protocol):
    """Samples of one modality. What ``read`` returns is a function of (seed, epoch, index) alone.

    ``lengths`` is (N,) the length along the last axis of what ``read`` returns, None if all are
    equal; ``fill`` the value of padding. A transform in shards, or its ``dataset``, has
    ``shard_sizes`` (n,) samples of each, whose ids are consecutive, and may have
    ``prefetch(shards)``, called before samples of these shards are read. One that crops all rows of
    a micro-batch alike has ``cut(ids)``, the length, and ``read`` takes it as ``longest``. One
    whose samples are finished on the device (images stay uint8 up to there) has ``finish(inputs)``.
    One with classes has ``labels`` (N,) int64."""

    fill: float

    @property
    def lengths(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def read(self, index: int, epoch: int) -> Tensor | None:
        """Sample ``index`` as the encoder takes it, or None if it can no longer be read (told by
        the transform)."""
        ...

    def placeholder(self, index: int) -> Tensor:
        """What stands in for a sample that cannot be read, of the planned size."""
        ...

    def describe(self) -> str: ...

    def probe_tasks(self) -> list[ProbeTask]: ...


class MicroBatches(Dataset[Batch]):
    """MicroBatch -> Batch. A sample that cannot be read gets weight 0, so that the plan does not
    change."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __getitem__(self, micro_batch: MicroBatch) -> Batch:
        cut = self.transform.cut(micro_batch.ids) if hasattr(self.transform, "cut") else None
        read = self.transform.read if cut is None else partial(self.transform.read, longest=cut)  # type: ignore[call-arg]
        items = [read(int(i), micro_batch.epoch) for i in micro_batch.ids]
        good = [item is not None for item in items]
        weight = None if all(good) else torch.tensor(good, dtype=torch.float32)
        rows = [
            self.transform.placeholder(int(i))[..., :cut] if item is None else item
            for i, item in zip(micro_batch.ids, items, strict=True)
        ]
        labels = (
            torch.from_numpy(self.transform.labels[micro_batch.ids])
            if hasattr(self.transform, "labels")
            else None
        )
        return collate(
            rows,
            micro_batch.ids,
            self.transform.fill,
            weight=weight,
            labels=labels,
            epoch=micro_batch.epoch,
            cursor=micro_batch.cursor,
            step_samples=micro_batch.step_samples,
        )


class PretrainDataModule(LightningDataModule):
    """Endless micro-batches of a transform, in an order that any world size can resume from a
    cursor.

    Set ``cursor`` before ``fit`` to go on after the last trained batch. The trainer must not
    replace the sampler (``use_distributed_sampler=False``) nor cut epochs (no
    ``limit_train_batches``): an epoch is a field of the batch.

    Args:
        transform: the samples.
        micro_batch: samples of one forward pass.
        global_batch: samples of an optimizer step over all ranks; G = global_batch / micro_batch.
        seed: of the run.
        workers: processes that read prefetch; 0 reads in the training process.
        max_tokens: limit of longest length times rows of a micro-batch, in samples or tokens; None
            for none.
        buckets: length quantiles of the plan.
        window_shards: shards that are shuffled together, None for all: see ``EpochOrder``. A small
            number keeps each shard to one node and the local cache small.

    Raises:
        ConfigError: if ``micro_batch`` does not divide ``global_batch``.
    """

    def __init__(
        self,
        transform: Transform,
        micro_batch: int,
        global_batch: int,
        seed: int,
        workers: int = 0,
        max_tokens: int | None = None,
        buckets: int = 12,
        window_shards: int | None = None,
    ) -> None:
        super().__init__()
        if micro_batch < 1 or global_batch % micro_batch:
            rule = f"must be a multiple of micro_batch={micro_batch}"
            raise ConfigError("global_batch", global_batch, rule, "change one of the two")
        self.transform, self.micro_batch, self.micro_batches_per_step = (
            transform,
            micro_batch,
            global_batch // micro_batch,
        )
        self.seed, self.workers, self.max_tokens = seed, workers, max_tokens
        self.buckets, self.window_shards = buckets, window_shards
        self.cursor: Cursor = ()

    @cached_property
    def plan(self) -> EpochOrder:
        """The order of the whole run."""
        sizes = getattr(_dataset(self.transform), "shard_sizes", len(self.transform))
        return EpochOrder(
            sizes,
            self.seed,
            self.micro_batch,
            self.transform.lengths,
            self.max_tokens,
            self.buckets,
            self.window_shards,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Of what a cursor means: the number of samples, their lengths and shards, and how they are
        walked."""
        plan = self.plan
        digest = hashlib.sha256(np.ascontiguousarray(plan.ends).tobytes())
        if plan.lengths is not None:
            digest.update(np.ascontiguousarray(plan.lengths, np.int64).tobytes())
        if hasattr(dataset := _dataset(self.transform), "checksums"):
            digest.update(dataset.checksums.tobytes())
        return f"{plan.size} samples, {plan.windows} windows, {readers_for(plan, self.micro_batches_per_step)} readers, {digest.hexdigest()}"

    def train_dataloader(self) -> DataLoader[Batch]:
        """This rank's micro-batches from ``cursor`` on, endlessly."""
        ready = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, world = (
            (torch.distributed.get_rank(), torch.distributed.get_world_size()) if ready else (0, 1)
        )
        prefetch = getattr(_dataset(self.transform), "prefetch", None)
        stream = StepSampler(
            self.plan,
            self.micro_batches_per_step,
            rank,
            world,
            self.cursor,
            readers_for(self.plan, self.micro_batches_per_step),
            prefetch,
        )
        # batch_size=None: the sampler yields whole micro-batches and the data set reads them, in
        # order with any workers
        return DataLoader(
            MicroBatches(self.transform),
            batch_size=None,
            sampler=stream,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_outlive_signals,
        )

    def finished(self, batch: Batch) -> Batch:
        """The batch as the encoder takes it, worked out on the device where it is."""
        finish = getattr(self.transform, "finish", None)
        return batch if finish is None else replace(batch, inputs=finish(batch.inputs))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Lightning's hook."""
        return self.finished(batch)

    def batches(self) -> Iterator[Batch]:
        """The micro-batches as a run sees them, for use without a trainer."""
        return map(self.finished, self.train_dataloader())

    def describe(self) -> str:
        """One line that names the data and its size."""
        return self.transform.describe()

    def probe_tasks(self) -> list[ProbeTask]:
        """Classifications of frozen features; [] where there are no labels."""
        return self.transform.probe_tasks()

    def largest(self) -> Batch:
        """The micro-batch of the first window that takes the most memory: the most rows times
        longest sample."""
        lengths, batches = self.plan.lengths, self.plan.window(0)
        sizes = [
            len(ids) if lengths is None else len(ids) * int(lengths[ids].max()) for ids in batches
        ]
        return self.finished(
            MicroBatches(self.transform)[MicroBatch(batches[int(np.argmax(sizes))], 0, ())]
        )

    def health_batches(self, n: int) -> list[Batch]:
        """About n samples spread evenly over the data, unlabelled, always the same: for effective
        rank and spread."""
        dataset = _dataset(self.transform)
        ids = (
            dataset.spread_ids(n)
            if hasattr(dataset, "spread_ids")
            else np.linspace(0, len(self.transform) - 1, n).astype(np.int64)
        )
        ids = np.unique(ids)
        cuts = range(self.micro_batch, len(ids), self.micro_batch)
        batches = MicroBatches(self.transform)
        return [self.finished(batches[MicroBatch(part, 0, ())]) for part in np.split(ids, cuts)]


def _dataset(transform: Transform) -> object:
    return getattr(transform, "dataset", transform)


def _outlive_signals(worker: int) -> None:
    """A stop signal goes to every process of a job, and training needs its workers up to the step
    where it saves.

    A worker told to end does so two minutes later, in case nobody is there any more to shut it
    down."""
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(120))
