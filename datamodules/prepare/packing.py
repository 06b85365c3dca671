"""Plan: which items go to which shard; pack(): write the shards in parallel."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.rng import Use, fold_in
from datamodules.datasets.scan import Skipped
from datamodules.datasets.unusable import Unusable, reading
from datamodules.parallel import advance, spread
from datamodules.prepare.output import Output, Record, write_json
from datamodules.prepare.settings import Build
from datamodules.shards.index import build_index
from datamodules.shards.tar import MOST, Sample, write_tar

_SPARE = 1.02  # factor of the estimated size that must be free on the disk


class Reasons(Skipped):
    """The files that a scan skipped, with reasons, by their paths relative to the input. The list
    is kept in memory, for the manifest.

    Args:
        root: the input.
    """

    def __init__(self, root: str) -> None:
        super().__init__(None)
        self.root, self.reasons = root, dict[str, str]()

    def start(self, reasons: dict[str, str]) -> None:
        self.reasons = {below(file, self.root): reason for file, reason in reasons.items()}


def below(file: str, root: str) -> str:
    """A path relative to the root, with slashes; the name of the file if it is the root itself."""
    if file == root:
        return os.path.basename(file)
    return os.path.relpath(file, root).replace(os.sep, "/")


@dataclass(frozen=True)
class Plan:
    """Which items go to which shard: a pure function of the input, the settings and the seed.

    Args:
        items: all items, in the order of the shards.
        cuts: shard n holds items cuts[n] to cuts[n + 1].
        make: (item, key of the sample) -> sample; raises ``Unusable``. It is called in other
            processes, so it and the items must be picklable.
        name: item -> its name in the list of skipped files; must be picklable too.
        bytes: estimated size of all shards.
        source: what identifies the input, see ``source_of``.
        facts: further entries of the manifest.
        skipped: files that were left out before packing -> the reason.
        hour: length of an hour in the unit of ``Sample.length``, or None.
    """

    items: Sequence[Any]
    cuts: list[int]
    make: Callable[[Any, str], Sample]
    name: Callable[[Any], str]
    bytes: float
    source: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    hour: int | None = None


def arranged(n: int, settings: Build) -> np.ndarray:
    """The order in which the n items are put into the shards, an array of their numbers."""
    if settings.order == "sorted":
        return np.arange(n)
    return np.random.default_rng(fold_in(settings.seed, Use.PREPARE)).permutation(n)


def cut(sizes: np.ndarray, settings: Build) -> list[int]:
    """Where shards begin and end: after ``shard_samples`` items, or ``shard_mb``.

    Args:
        sizes: size in bytes of each item in a tar.
        settings: of the command.
    """
    n = len(sizes)
    if settings.shard_samples:
        return [*range(0, n, settings.shard_samples), n]
    before, cuts = np.concatenate([[0], np.cumsum(sizes)]), [0]
    while cuts[-1] < n:
        full = before[cuts[-1]] + settings.shard_mb * 1e6
        cuts.append(max(cuts[-1] + 1, int(np.searchsorted(before, full, "right")) - 1))
    return cuts


def source_of(files: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """What identifies an input: the names and sizes in bytes of its files.

    Times do not count: a copy is the same input.
    """
    rows = "".join(f"{name}\t{size}\n" for name, size in sorted(files))
    total = sum(size for _, size in files)
    digest = hashlib.sha256(rows.encode(errors="surrogateescape")).hexdigest()
    return {"files": len(files), "bytes": total, "hash": digest}


def bytes_of(file: str) -> bytes:
    """The content of a file.

    Raises:
        Unusable: if it cannot be read, or is larger than 1 GiB.
    """
    with reading("cannot be read"):
        if (size := os.path.getsize(file)) > MOST:
            raise Unusable(f"has {size:,} bytes; samples of up to 1 GiB are read")
        return Path(file).read_bytes()


@dataclass(frozen=True)
class _Shard:
    folder: Path
    record: Path
    name: str
    first: int
    items: Sequence[Any]
    make: Callable[[Any, str], Sample]
    name_of: Callable[[Any], str]


def pack(plan: Plan, output: Output) -> dict[str, Any]:
    """Write every shard that is not finished, then the manifest, which is returned.

    Raises:
        ConfigError: if there is too little space, or more than ``max_bad_share`` is unusable.
    """
    settings = output.settings
    output.begin(plan.source)
    names = [f"shard-{n:06d}" for n in range(len(plan.cuts) - 1)]
    records = [record for name in names if (record := output.finished(name))]
    ready = {record.name for record in records}
    tasks = [
        _Shard(
            output.folder, output.record_path(name), name, a, plan.items[a:b], plan.make, plan.name
        )
        for name, a, b in zip(names, plan.cuts, plan.cuts[1:])
        if name not in ready
    ]
    if ready:
        print(f"{len(ready):,} of {len(names):,} shards are there already", file=sys.stderr)
    found = sum(b - a for name, a, b in zip(names, plan.cuts, plan.cuts[1:]) if name in ready)
    output.check_space(plan.bytes * _SPARE - sum(record.written.bytes for record in records))
    _check_share(records, plan, settings)
    total = len(plan.items)
    done = spread(_pack_one, tasks, settings.processes, total, "packing", "samples", 1, found)
    with closing(done):
        for record in done:
            records.append(record)
            _check_share(records, plan, settings)
    hours = round(sum(r.written.length for r in records) / plan.hour, 4) if plan.hour else None
    return output.finish(records, plan.skipped, plan.source, {**plan.facts, "hours": hours})


def _check_share(records: list[Record], plan: Plan, settings: Build) -> None:
    bad = {file: reason for record in records for file, reason in record.skipped.items()}
    n = len(plan.items)
    if len(bad) > settings.max_bad_share * n:
        named = "; ".join(f"{file} ({reason})" for file, reason in list(bad.items())[:5])
        rule = (
            f"has {len(bad)} of {n} unusable, more than "
            f"max_bad_share={settings.max_bad_share:g} allows ({named})"
        )
        remedy = "mend or remove them, or raise max_bad_share"
        raise ConfigError("input", settings.input, rule, remedy)


def _pack_one(task: _Shard) -> Record:
    """Write the tar of a shard, its index and, at the end, its record. A kill leaves no part of any
    of these files."""
    skipped: dict[str, str] = {}

    def samples() -> Iterator[Sample]:
        for n, item in enumerate(task.items, task.first):
            try:
                with reading("cannot be packed"):
                    sample = task.make(item, f"{n:09d}")
                yield sample
            except Unusable as error:
                skipped[task.name_of(item)] = str(error)
            advance()

    tar, index = (task.record.with_name(f"{task.name}.{ending}.half") for ending in ("tar", "idx"))
    written = write_tar(tar, samples())
    if written.samples:
        refused = build_index(tar, index)
        assert not refused, refused
        os.replace(index, task.folder / f"{task.name}.idx")
        os.replace(tar, task.folder / f"{task.name}.tar")
    record = Record(task.name, written, skipped)
    write_json(task.record, asdict(record))
    return record
