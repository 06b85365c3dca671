"""PretrainDataModule: endless micro-batches of any modality, read by DataLoader workers."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.types import Batch, ProbeTask
from datamodules.datasets.probe_tasks import collate
from datamodules.order import Cursor, EpochOrder, MicroBatch, StepSampler, readers_for
from datamodules.transforms.base import Samples


class MicroBatches(Dataset[Batch]):
    """Reads micro-batches.

    A sample that cannot be read gets weight 0 and a placeholder, so that the order of a run does
    not change.

    Args:
        transform: the samples.
    """

    def __init__(self, transform: Samples) -> None:
        self.transform = transform

    def __getitem__(self, micro_batch: MicroBatch) -> Batch:
        transform, ids = self.transform, micro_batch.ids
        lengths = None if transform.lengths is None else transform.lengths[ids].tolist()
        longest = None
        if transform.crop_to_shortest and lengths:
            # An item whose length could not be read has length 1.
            longest = min((length for length in lengths if length > 1), default=1)
        read = [transform.read(int(i), micro_batch.epoch, longest) for i in ids]
        good = [row is not None for row in read]
        if longest is not None:  # an item may be shorter than its file says
            longest = min([longest, *(row.shape[-1] for row in read if row is not None)])
        rows = [
            (transform.placeholder(lengths[n] if lengths else None) if row is None else row)
            for n, row in enumerate(read)
        ]
        return collate(
            rows if longest is None else [_first(row, longest) for row in rows],
            ids,
            transform.fill,
            weight=None if all(good) else torch.tensor(good, dtype=torch.float32),
            labels=None if transform.labels is None else torch.from_numpy(transform.labels[ids]),
            epoch=micro_batch.epoch,
            cursor=micro_batch.cursor,
            step_samples=micro_batch.step_samples,
        )


def _first(row: torch.Tensor, length: int) -> torch.Tensor:
    """The first ``length`` steps of a row; zeros follow if it has fewer."""
    return torch.nn.functional.pad(row[..., :length], (0, max(0, length - row.shape[-1])))


class PretrainDataModule(LightningDataModule):
    """Endless micro-batches of samples, in an order that any world size can resume from a cursor.

    Set ``cursor`` before ``fit`` to continue after the last trained batch. The trainer must not
    replace the sampler (``use_distributed_sampler=False``) or limit epochs (no
    ``limit_train_batches``): to it the data are endless, and ``Batch.epoch`` counts epochs.

    Args:
        transform: the samples.
        micro_batch: samples of one forward pass.
        global_batch: samples of an optimizer step over all ranks, a multiple of ``micro_batch``.
        seed: of the run.
        workers: number of processes that read data ahead; 0 reads in the training process.
        max_tokens: largest size of a micro-batch, number of rows times length of the longest row,
            in audio samples or tokens; None for no limit.
        buckets: number of length quantiles, see ``EpochOrder``. None: 12, or, if the samples ask
            for it (``Samples.by_length``), that they are sorted by length.
        window_shards: shards that are shuffled together, None for all, see ``EpochOrder``. A small
            number keeps each shard to one node and the local cache small.

    Raises:
        ConfigError: if ``micro_batch`` does not divide ``global_batch``.
    """

    def __init__(
        self,
        transform: Samples,
        micro_batch: int,
        global_batch: int,
        seed: int,
        workers: int = 0,
        max_tokens: int | None = None,
        buckets: int | None = None,
        window_shards: int | None = None,
    ) -> None:
        super().__init__()
        if micro_batch < 1 or global_batch % micro_batch:
            rule = f"must be a multiple of micro_batch={micro_batch}"
            raise ConfigError("global_batch", global_batch, rule, "change one of the two")
        self.transform, self.micro_batch = transform, micro_batch
        self.micro_batches_per_step = global_batch // micro_batch
        self.seed, self.workers, self.max_tokens = seed, workers, max_tokens
        self.window_shards = window_shards
        self.buckets = 12 if buckets is None and not transform.by_length else buckets
        self.cursor: Cursor = ()

    @cached_property
    def plan(self) -> EpochOrder:
        """The order of the whole run."""
        return EpochOrder(
            self.transform.numbered.shard_sizes,
            self.seed,
            self.micro_batch,
            self.transform.lengths,
            self.max_tokens,
            self.buckets,
            self.window_shards,
        )

    @cached_property
    def fingerprint(self) -> str:
        """What a cursor refers to: the number of samples, their lengths and shards, and the order.

        A checkpoint stores it. A resumed run compares it with the fingerprint of the data it finds.
        """
        plan = self.plan
        digest = hashlib.sha256(np.ascontiguousarray(plan.ends).tobytes())
        if plan.lengths is not None:
            digest.update(np.ascontiguousarray(plan.lengths, np.int64).tobytes())
        digest.update(self.transform.numbered.checksums.tobytes())
        if plan.buckets is None:
            digest.update(b"sorted by length")
        readers = readers_for(plan, self.micro_batches_per_step)
        sizes = f"{plan.size} samples, {plan.windows} windows, {readers} readers"
        return f"{sizes}, {digest.hexdigest()}"

    def train_dataloader(self) -> DataLoader[Batch]:
        """This rank's micro-batches from ``cursor`` on, endlessly."""
        rank, world = 0, 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        sampler = StepSampler(
            self.plan,
            self.micro_batches_per_step,
            rank,
            world,
            self.cursor,
            readers_for(self.plan, self.micro_batches_per_step),
            self.transform.numbered.prefetch,
        )
        # batch_size=None: the sampler yields micro-batches, not single samples; MicroBatches reads
        # them.
        return DataLoader(
            MicroBatches(self.transform),
            batch_size=None,
            sampler=sampler,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_outlive_signals,
        )

    def finished(self, batch: Batch) -> Batch:
        """The batch as the encoder takes it, computed on the device where it is."""
        return replace(batch, inputs=self.transform.finish(batch.inputs))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Lightning's hook."""
        return self.finished(batch)

    def batches(self) -> Iterator[Batch]:
        """The micro-batches as a run sees them, for use without a trainer."""
        return map(self.finished, self.train_dataloader())

    def describe(self) -> str:
        return self.transform.describe()

    def probe_tasks(self) -> list[ProbeTask]:
        """Classifications of frozen features; [] without labels."""
        return self.transform.probe_tasks()

    def largest(self) -> Batch:
        """The largest micro-batch of the first window, by number of rows times their length: that
        of the longest row, or of the shortest if all rows are cropped to it."""
        lengths, batches = self.plan.lengths, self.plan.window(0)
        length = np.min if self.transform.crop_to_shortest else np.max
        sizes = [
            len(ids) if lengths is None else len(ids) * int(length(lengths[ids])) for ids in batches
        ]
        micro_batch = MicroBatch(batches[int(np.argmax(sizes))], 0, ())
        return self.finished(MicroBatches(self.transform)[micro_batch])

    def health_batches(self, n: int) -> list[Batch]:
        """About n samples spread evenly over the data, always the same ones.

        The measures of collapse (effective rank, variance) are computed on these samples.
        """
        ids = np.unique(self.transform.numbered.spread_ids(n))
        lengths, batches = self.plan.lengths, MicroBatches(self.transform)
        if self.transform.crop_to_shortest and lengths is not None:
            ids = ids[np.argsort(lengths[ids], kind="stable")]
        return [self.finished(batches[MicroBatch(part, 0, ())]) for part in self.plan.pack(ids)]


def _outlive_signals(worker: int) -> None:
    """Make a loader worker ignore the signals that stop a job.

    The signals reach every process of the job, and training still needs its workers up to the step
    that saves. On SIGTERM a worker exits after two minutes, in case no process is left to stop it.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(120))
