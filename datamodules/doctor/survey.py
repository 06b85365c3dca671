"""survey(): examine every item of a dataset in several processes, and collect what was found."""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from d2v_pretrain.errors import ConfigError, DataError
from datamodules.datasets.base import Dataset
from datamodules.doctor.examine import Seen, examine

_PART = 32  # items that a process examines at a time


@dataclass(frozen=True)
class Survey:
    """What was found.

    Args:
        size: number of items of the dataset.
        examined: how many of them were decoded.
        unit: of ``lengths``.
        lengths: of the items that could be decoded.
        findings: kind of defect -> the items that have it, by name and perhaps with a reason.
    """

    size: int
    examined: int
    unit: str
    lengths: np.ndarray
    findings: dict[str, list[str]]

    def share(self, kind: str) -> float:
        """Share of the examined items that have a defect; for ``unusable``, of all files."""
        count = len(self.findings[kind])
        return count / ((self.size + count) if kind == "unusable" else max(self.examined, 1))


Named = tuple[str, Seen | None]


class _Parts(TorchDataset[list[Named]]):
    def __init__(self, dataset: Dataset[Any], side: int, ids: np.ndarray) -> None:
        self.dataset, self.side = dataset, side
        self.parts = np.array_split(ids, max(1, -(-len(ids) // _PART)))

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, part: int) -> list[Named]:
        try:
            return [self._look(index) for index in self.parts[part].tolist()]
        except ConfigError as error:  # which a DataLoader could not raise again
            raise DataError(str(error)) from None

    def _look(self, index: int) -> Named:
        item = self.dataset.read(index)
        text = f"text {index + 1}: {item[:50]!r}" if isinstance(item, str) else None
        return text or self.dataset.name(index), examine(item, self.side)


def survey(
    dataset: Dataset[Any], side: int, sample: int | None, processes: int, skipped: Path
) -> Survey:
    """Decode the dataset, or a random sample of it that is always the same.

    Args:
        dataset: the items.
        side: see ``examine``.
        sample: how many items; None for all.
        processes: number of processes that decode.
        skipped: the list of skipped files that the dataset writes (see
            ``datamodules.datasets.scan.Skipped``).
    """
    size = len(dataset)
    every = sample is None or sample >= size
    ids = (
        np.arange(size)
        if every
        else np.sort(np.random.default_rng(0).choice(size, sample, replace=False))
    )
    parts = DataLoader(
        _Parts(dataset, side, ids), None, num_workers=processes, worker_init_fn=_silence
    )
    bar = track(parts, "decoding", total=len(parts.dataset), console=Console(stderr=True))  # type: ignore[arg-type]
    found = [item for part in bar for item in part]
    good = [seen for _, seen in found if seen is not None]
    unit, lengths = good[0].unit if good else "items", np.array([seen.length for seen in good])
    return Survey(size, len(ids), unit, lengths, _findings(found, skipped))


def _silence(worker: int) -> None:
    """Discard what a worker prints of skipped files.

    These lines would break the progress bar, and the table at the end has them too.
    """
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _findings(found: list[Named], skipped: Path) -> dict[str, list[str]]:
    findings: dict[str, list[str]] = defaultdict(list)
    lines = (
        [json.loads(line) for line in skipped.read_text("utf-8").splitlines()]
        if skipped.exists()
        else []
    )
    for line in lines:
        if line["at"] == "start" and not line["reason"].startswith("not looked at"):
            findings["unusable"].append(f"{line['file']}: {line['reason']}")
    why = {line["file"]: line["reason"] for line in lines}
    for name, seen in found:
        if seen is None:
            findings["unreadable"].append(": ".join(filter(None, (name, why.get(name)))))
        for defect in seen.defects if seen else ():
            findings[defect].append(name)
    findings["same content"] = _alike((name, seen.digest) for name, seen in found if seen)
    findings["same name"] = _alike((name, _key(name)) for name, _ in found)
    return {kind: names for kind, names in findings.items() if names}


def _key(name: str) -> str:
    """The part of a name that is compared to find items of the same name.

    For "FILE.wav" the name without its ending, for "SHARD.tar: KEY" the key; "text 3: ..." is
    unchanged.
    """
    shard, _, key = name.partition(".tar: ")
    return key or (name if name.startswith("text ") else os.path.splitext(shard)[0])


def _alike(keys: Iterable[tuple[str, Hashable]]) -> list[str]:
    """Every item with the key of an earlier one, and the name of the earlier one."""
    first: dict[Hashable, str] = {}
    seen = [(name, first.get(key), first.setdefault(key, name)) for name, key in keys]
    return [f"{name} = {before}" for name, before, _ in seen if before is not None]
