"""Makes samples of audio files: the bytes of the file, or FLAC at 16 kHz, mono."""

from __future__ import annotations

import io
import json
import os
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from d2v_pretrain.errors import ConfigError
from datamodules.datasets.audio_folder import AudioFolder, Stretch
from datamodules.datasets.base import RATE
from datamodules.datasets.scan import scan
from datamodules.datasets.sound import ENDINGS, header, mono, waveform
from datamodules.datasets.unusable import Unusable
from datamodules.prepare.output import Output
from datamodules.prepare.packing import Plan, Reasons, arranged, below, bytes_of, cut, source_of
from datamodules.prepare.settings import Audio
from datamodules.shards.tar import Sample, tar_bytes

_FLAC = 1.2  # bytes per sample of 16 kHz speech as FLAC (from 0.5 to 1.5)


class AudioItem(NamedTuple):
    """A part of an audio file, which becomes a sample.

    Args:
        name: path of its file below the input.
        stretch: the part of the file.
        whole: whether that part is the whole file.
    """

    name: str
    stretch: Stretch
    whole: bool


class Manifest(AudioFolder):
    """The files of a fairseq manifest: its first line is a folder, the others ``path TAB frames``.

    The frames are read from the files, because these may be newer than the manifest.
    """

    def __init__(self, path: str, **settings: Any) -> None:
        lines = Path(path).read_text("utf-8", "surrogateescape").splitlines()
        self.manifest = path
        beside = os.path.join(os.path.dirname(path), lines[0].strip()) if lines else ""
        named = bool(lines) and os.path.isdir(lines[0].strip())
        super().__init__(lines[0].strip() if named else beside, **settings)
        if not lines or not os.path.isdir(self.root):
            rule = "must begin with a line that is a folder"
            raise ConfigError("input", path, rule, "write it there")
        names = (line.split("\t")[0] for line in lines[1:] if line.strip())
        self.named = [os.path.join(self.root, name) for name in names]

    @cached_property
    def files(self) -> dict[str, Stretch]:
        """The usable files."""
        share = self.max_bad_share
        return scan(self.root, ENDINGS, self._check, self.skipped, share, files=self.named)


def plan(settings: Audio, _: Output) -> Plan:
    """Which item goes to which shard."""
    rest: dict[str, Any] = {
        "min_seconds": settings.min_seconds,
        "max_seconds": settings.max_seconds,
        "max_bad_share": settings.max_bad_share,
        "skipped_path": None,
        "labels": None,
        "label_column": None,
        "split_column": None,
        "test_values": (),
    }
    listed = settings.input.endswith(".tsv")
    folder = Manifest(settings.input, **rest) if listed else AudioFolder(settings.input, **rest)
    folder.skipped = reasons = Reasons(folder.root)
    files = folder.files
    sizes = {file: os.path.getsize(file) for file in files}
    items = [
        AudioItem(below(part.file, folder.root), part, part.frames == files[part.file].frames)
        for part in folder.stretches
    ]
    items = [items[i] for i in arranged(len(items), settings)]
    made = np.array([_bytes(item, sizes[item.stretch.file], settings.encode) for item in items])
    return Plan(
        items,
        cut(made, settings),
        partial(sample, encode=settings.encode, check=settings.check),
        attrgetter("name"),
        float(made.sum()),
        source_of([(below(file, folder.root), size) for file, size in sizes.items()]),
        {"unit": f"samples at {RATE} Hz"},
        reasons.reasons,
        RATE * 3600,
    )


def _bytes(item: AudioItem, size: int, encode: str) -> int:
    """Estimated size of a sample in the tar, from the size of its file."""
    part = item.stretch
    if encode == "flac" or not item.whole:
        size = int(part.frames * RATE / part.rate * _FLAC)
    return tar_bytes(size, len(item.name) + 60)


def sample(item: AudioItem, key: str, encode: str, check: str) -> Sample:
    """An item as a sample of two members, the audio and ``json``.

    The ``json`` has the name of the file, the number of the sample's first frame in it, and the
    number of frames and the rate in Hz of the audio member.

    Raises:
        Unusable: if it cannot be decoded.
    """
    part = item.stretch
    if encode == "flac" or not item.whole:
        wave = waveform(part.file, part.start, part.frames)
        extension, data, frames, rate = "flac", flac(wave), len(wave), RATE
    else:
        extension, data = os.path.splitext(part.file)[1][1:].lower(), bytes_of(part.file)
        _check(data, part.frames, check)
        frames, rate = part.frames, part.rate
    about = {"file": item.name, "start": part.start, "frames": frames, "rate": rate}
    length = -(-frames * RATE // rate)
    return Sample(key, {extension: data, "json": json.dumps(about).encode()}, length)


def flac(wave: np.ndarray) -> bytes:
    """A mono waveform at 16 kHz as FLAC of 16 bits; samples beyond full scale are clipped."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, RATE, "PCM_16", format="FLAC")
    return buffer.getvalue()


def _check(data: bytes, frames: int, check: str) -> None:
    """Decode the bytes of a file, or only their header. The name of the file is not used, because
    readers of shards do not know it."""
    file = io.BytesIO(data)
    if (there := header(file)[0]) != frames:
        raise Unusable(f"breaks off after {there:,} of {frames:,} frames")
    if check == "decode":
        mono(file)
