"""AudioFolder: wav, flac, ogg and mp3 files of any rate and number of channels, below a folder."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile
import torch

from d2v_pretrain.errors import ConfigError
from datamodules.datasets.labels import Item, Table, labelled
from datamodules.datasets.probe_tasks import Labelled
from datamodules.datasets.scan import Skipped, Unusable, scan

RATE = 16_000
ENDINGS = (".wav", ".flac", ".ogg", ".mp3")


class Piece(NamedTuple):
    """A stretch of a file: its first frame and number of frames at the file's rate (Hz)."""

    file: str
    start: int
    frames: int
    rate: int


class AudioFolder:
    """Utterances as mono 16 kHz waveforms; a file longer than ``max_seconds`` is several of equal
    length.

    Args:
        root: folder, searched to any depth.
        min_seconds: shorter files are skipped and listed.
        max_seconds: longest utterance; the reference's datasets have 35 s at most.
        max_bad_share: see ``datamodules.datasets.scan.scan``.
        skipped_path: where skipped files are listed, or None.
        labels: table with a column ``file`` for the probe, or None. Its test files are left out of
            pretraining.
        label_column, split_column, test_values: see ``datamodules.datasets.labels.Table``; not read
            without ``labels``.
    """

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
    def files(self) -> dict[str, Piece]:
        """The usable files, whole."""
        ignore = [self.labels.path] if self.labels else []
        return scan(self.root, ENDINGS, self._check, self.skipped, self.max_bad_share, ignore)

    def _check(self, file: str) -> Piece:
        try:
            info = soundfile.info(file)
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise Unusable(f"not readable as audio ({error})") from None
        if info.duration < self.min_seconds:
            raise Unusable(f"too short: {info.duration:.3f} s, min_seconds={self.min_seconds:g}")
        return Piece(file, 0, info.frames, info.samplerate)

    @cached_property
    def _items(self) -> list[tuple[Piece, Item]]:
        """Labelled files that are there, matched by path below the root, else by name."""
        if self.labels is None:
            return []
        paths = {os.path.relpath(file, self.root): piece for file, piece in self.files.items()}
        names = {os.path.basename(file): piece for file, piece in self.files.items()}
        rows = [
            (paths.get(i.key) or names.get(os.path.basename(i.key)), i) for i in self.labels.items()
        ]
        matched = [(piece, item) for piece, item in rows if piece is not None]
        if len({item.test for _, item in matched}) < 2:
            rule = f"names {len(matched)} of the files in {self.root}, of {len(rows)}, and needs some of each split"
            raise ConfigError(
                "data.labels", self.labels.path, rule, "check its column of file names"
            )
        return matched

    @cached_property
    def pieces(self) -> list[Piece]:
        """The utterances to pretrain on."""
        held_out = {piece.file for piece, item in self._items if item.test}
        return [
            part
            for file, piece in self.files.items()
            if file not in held_out
            for part in self._parts(piece)
        ]

    def _parts(self, piece: Piece) -> list[Piece]:
        parts = math.ceil(piece.frames / (self.max_seconds * piece.rate))
        cuts = np.linspace(0, piece.frames, parts + 1).astype(int).tolist()
        return [Piece(piece.file, a, b - a, piece.rate) for a, b in pairwise(cuts)]

    def __len__(self) -> int:
        return len(self.pieces)

    @cached_property
    def frames(self) -> np.ndarray:
        """(N,) samples of each utterance at 16 kHz."""
        return np.array([math.ceil(piece.frames * RATE / piece.rate) for piece in self.pieces])

    def name(self, index: int) -> str:
        """The file of an utterance, and from where in it."""
        piece = self.pieces[index]
        return f"{piece.start / piece.rate:.2f} s into {piece.file}" if piece.start else piece.file

    def read(self, index: int) -> np.ndarray | None:
        """(S,) float32 waveform at 16 kHz, or None if the file cannot be decoded (then it is
        listed)."""
        return self._decode(self.pieces[index])

    def _decode(self, piece: Piece) -> np.ndarray | None:
        try:
            return decode(piece)
        except Unusable as error:
            self.skipped.add(piece.file, str(error))
            return None

    def describe(self) -> str:
        """One line for the log."""
        hours = self.frames.sum() / RATE / 3600
        return f"{self.root}: {len(self):,} utterances of {len(self.files):,} audio files, {hours:.1f} h"

    def labelled(self) -> list[Labelled[np.ndarray]]:
        """The column of classes; [] without a table."""
        if self.labels is None:
            return []
        pieces = {item.key: piece for piece, item in self._items}
        items = [item for _, item in self._items]
        return [
            labelled(
                str(self.labels.label),
                items,
                lambda key: self._decode(pieces[key]),
                self.labels.note(),
            )
        ]


def decode(piece: Piece) -> np.ndarray:
    """``waveform`` of a stretch of a file."""
    return waveform(piece.file, piece.start, piece.frames)


def waveform(file: str | BinaryIO, start: int = 0, frames: int = -1) -> np.ndarray:
    """(S,) float32 mono at 16 kHz, from that many frames of the file's own rate; all of them by
    default.

    Raises:
        Unusable: if it cannot be decoded, or is not finite.
    """
    try:
        sound, rate = soundfile.read(file, frames, start, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        raise Unusable(f"cannot be decoded ({error})") from None
    mono = sound[:, 0] if sound.shape[1] == 1 else sound.mean(1)
    if not len(mono) or not math.isfinite(
        np.dot(mono, mono)
    ):  # as isfinite().all(), in half the time
        raise Unusable("has no sound, or samples that are not finite")
    return mono if rate == RATE else resampler(rate)(torch.from_numpy(mono)).numpy()


@lru_cache
def resampler(rate: int) -> torch.nn.Module:
    """From ``rate`` Hz to 16 kHz, with its kernel kept."""
    import torchaudio  # takes a while, and data at 16 kHz does not need it

    return torchaudio.transforms.Resample(rate, RATE)
