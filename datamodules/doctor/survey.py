"""Every item of a dataset examined, in several processes, and what was found put together."""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from datamodules.doctor.examine import Seen, examine

_PART = 32  # items that a process examines at a time


@dataclass(frozen=True)
class Survey:
    """What was found.

    Args:
        size: items of the dataset. examined: how many of them were decoded.
        unit: of ``lengths``. lengths: of the items that could be decoded.
        findings: kind of defect -> what has it, by name and perhaps reason.
    """

    size: int
    examined: int
    unit: str
    lengths: np.ndarray
    findings: dict[str, list[str]]

    def share(self, kind: str) -> float:
        """Of the items examined (for ``unusable``: of all files)."""
        count = len(self.findings[kind])
        return count / ((self.size + count) if kind == "unusable" else max(self.examined, 1))


Named = tuple[str, Seen | None]


class _Parts(Dataset[list[Named]]):
    def __init__(
        self, read: Callable[[int], Any], name: Callable[[int], str], side: int, ids: np.ndarray
    ) -> None:
        self.read, self.name, self.side = read, name, side
        self.parts = np.array_split(ids, max(1, -(-len(ids) // _PART)))

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, part: int) -> list[Named]:
        return [(self.name(i), examine(self.read(i), self.side)) for i in self.parts[part].tolist()]


def survey(dataset: Any, side: int, sample: int | None, processes: int, skipped: Path) -> Survey:
    """Decode the dataset, or a random sample of it that is always the same.

    Args:
        dataset: with ``read(i)`` and a length, or with ``texts()``; ``name(i)`` names an item where
            there is one.
        side: see ``examine``.
        sample: how many items; None for all.
        processes: that decode.
        skipped: the list of skipped files that the dataset writes (see
            ``datamodules.datasets.scan.Skipped``).
    """
    read, name, size, unit = _access(dataset)
    every = sample is None or sample >= size
    ids = (
        np.arange(size)
        if every
        else np.sort(np.random.default_rng(0).choice(size, sample, replace=False))
    )
    parts = DataLoader(
        _Parts(read, name, side, ids), None, num_workers=processes, worker_init_fn=_silence
    )
    bar = track(parts, "decoding", total=len(parts.dataset), console=Console(stderr=True))  # type: ignore[arg-type]
    found = [item for part in bar for item in part]
    lengths = np.array([seen.length for _, seen in found if seen is not None])
    return Survey(size, len(ids), unit, lengths, _findings(found, skipped))


def _silence(worker: int) -> None:
    """What is skipped is in the table at the end; here it would tear the progress bar."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _access(dataset: Any) -> tuple[Callable[[int], Any], Callable[[int], str], int, str]:
    """How to read an item and to name it, the number of items, and the unit of their lengths."""
    if not hasattr(dataset, "read") or not getattr(dataset, "in_tokens", True):
        texts = list(dataset.texts())
        return (
            texts.__getitem__,
            lambda i: f"text {i + 1}: {texts[i][:50]!r}",
            len(texts),
            "characters",
        )
    other = "tokens" if hasattr(dataset, "in_tokens") else "pixels of the shorter side"
    name = getattr(dataset, "name", lambda i: f"item {i + 1}")
    return dataset.read, name, len(dataset), "seconds" if hasattr(dataset, "frames") else other


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
    """A "FILE.wav" without its ending; the key of "SHARD.tar: KEY"; "text 3: …" as it is."""
    shard, _, key = name.partition(".tar: ")
    return key or (name if name.startswith("text ") else os.path.splitext(shard)[0])


def _alike(keys: Iterable[tuple[str, Hashable]]) -> list[str]:
    """Every item whose key an earlier one has, with the name of that."""
    first: dict[Hashable, str] = {}
    seen = [(name, first.get(key), first.setdefault(key, name)) for name, key in keys]
    return [f"{name} = {before}" for name, before, _ in seen if before is not None]
