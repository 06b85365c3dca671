"""AudioFolder: audio files of any sample rate and number of channels, below a folder."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from d2v_pretrain.errors import ConfigError
from datamodules.datasets.base import RATE, Dataset
from datamodules.datasets.labels import LabelRow, Table, labelled
from datamodules.datasets.probe_tasks import Labelled
from datamodules.datasets.scan import Skipped, scan
from datamodules.datasets.sound import ENDINGS, header, waveform
from datamodules.datasets.unusable import Unusable


class Stretch(NamedTuple):
    """Part of an audio file: first frame, number of frames, and the file's sample rate in Hz."""

    file: str
    start: int
    frames: int
    rate: int


class AudioFolder(Dataset[np.ndarray]):
    """Mono 16 kHz waveforms; a file longer than ``max_seconds`` is several items of equal length.

    Args:
        root: folder, searched to any depth.
        min_seconds: shorter files are skipped and listed.
        max_seconds: longest item; the reference's datasets have 35 s at most.
        max_bad_share: see ``datamodules.datasets.scan.scan``.
        skipped_path: where skipped files are listed, or None.
        labels: table with a column ``file`` for the probe, or None. Its test files are left out of
            pretraining.
        label_column, split_column, test_values: see ``datamodules.datasets.labels.Table``; not read
            without ``labels``.
    """

    holds = "waveform"

    def __init__(
        self,
        root: str,
        min_seconds: float,
        max_seconds: float,
        max_bad_share: float,
        skipped_path: str | None,
        labels: str | None,
        label_column: str | None,
        split_column: str | None,
        test_values: Sequence[str | int],
    ) -> None:
        self.root, self.min_seconds, self.max_seconds = root, min_seconds, max_seconds
        self.max_bad_share, self.skipped = max_bad_share, Skipped(skipped_path)
        self.labels = (
            Table(labels, "file", label_column, split_column, test_values) if labels else None
        )

    @cached_property
    def files(self) -> dict[str, Stretch]:
        """The usable files by name, each as one stretch from its first frame to its last."""
        if self.labels is not None:
            self.labels.rows()  # a mistake in the table need not wait for the scan of all files
        ignore = [self.labels.path] if self.labels else []
        return scan(self.root, ENDINGS, self._check, self.skipped, self.max_bad_share, ignore)

    def _check(self, file: str) -> Stretch:
        frames, rate = header(file)
        if (seconds := frames / rate) < self.min_seconds:
            raise Unusable(f"too short: {seconds:.3f} s, min_seconds={self.min_seconds:g}")
        return Stretch(file, 0, frames, rate)

    @cached_property
    def labelled_files(self) -> list[tuple[Stretch, LabelRow]]:
        """The rows of the table whose files exist, by the path below the root or, failing that, by
        name. How many rows name no such file is printed."""
        if self.labels is None:
            return []
        paths = {os.path.relpath(file, self.root): whole for file, whole in self.files.items()}
        names = {os.path.basename(file): whole for file, whole in self.files.items()}
        rows = self.labels.rows()

        def find(key: str) -> Stretch | None:
            return paths.get(key) or names.get(os.path.basename(key))

        # Excel puts quotes around names with a comma in a table with tabs.
        found = [(find(row.key) or find(row.key.strip(' "')), row) for row in rows]
        matched = [(whole, row) for whole, row in found if whole is not None]
        if lost := [row.key for whole, row in found if whole is None]:
            rest = f"{len(lost):,} of {len(rows):,} rows name no usable file in {self.root}"
            print(f"data.labels={self.labels.path}: {rest}, such as {lost[0]}", file=sys.stderr)
        if len({row.test for _, row in matched}) < 2:
            rule = (
                f"names {len(matched)} of the files in {self.root} in its {len(rows)} rows, "
                "and must name some of each split"
            )
            remedy = "check its column of file names"
            raise ConfigError("data.labels", self.labels.path, rule, remedy)
        return matched

    @cached_property
    def stretches(self) -> list[Stretch]:
        """The items to pretrain on."""
        held_out = {whole.file for whole, row in self.labelled_files if row.test}
        files = [whole for file, whole in self.files.items() if file not in held_out]
        return [part for whole in files for part in self._parts(whole)]

    def _parts(self, whole: Stretch) -> list[Stretch]:
        parts = math.ceil(whole.frames / (self.max_seconds * whole.rate))
        cuts = np.linspace(0, whole.frames, parts + 1).astype(int).tolist()
        return [Stretch(whole.file, a, b - a, whole.rate) for a, b in pairwise(cuts)]

    def __len__(self) -> int:
        return len(self.stretches)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(items,) length of each item in samples at 16 kHz."""
        return np.array([math.ceil(part.frames * RATE / part.rate) for part in self.stretches])

    def name(self, index: int) -> str:
        """The file of an item, and where in the file it starts."""
        part = self.stretches[index]
        return f"{part.start / part.rate:.2f} s into {part.file}" if part.start else part.file

    def read(self, index: int) -> np.ndarray | None:
        return self.decode(self.stretches[index])

    def decode(self, part: Stretch) -> np.ndarray | None:
        """The (samples,) float32 waveform at 16 kHz; None if it cannot be decoded, which is
        listed."""
        try:
            return waveform(part.file, part.start, part.frames)
        except Unusable as error:
            self.skipped.add(part.file, str(error))
            return None

    def describe(self) -> str:
        hours = self.lengths.sum() / RATE / 3600
        files = f"{len(self.files):,} audio files"
        return f"{self.root}: {len(self):,} utterances of {files}, {hours:.1f} h"

    def labelled(self) -> list[Labelled[np.ndarray]]:
        """The classification by the label column of the table; [] without a table."""
        if self.labels is None:
            return []
        return [self.classification(str(self.labels.label), self.labels.note())]

    def classification(self, name: str, note: str) -> Labelled[np.ndarray]:
        """The labelled files as a probe task."""
        files = {row.key: whole for whole, row in self.labelled_files}
        rows = [row for _, row in self.labelled_files]
        return labelled(name, rows, lambda key: self.decode(files[key]), note)
