"""Sound files to samples: their own bytes, or FLAC of 16 kHz mono."""

from __future__ import annotations

import io
import json
import os
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from d2v_pretrain.errors import ConfigError
from datamodules.datasets.audio_folder import ENDINGS, RATE, AudioFolder, Piece, decode
from datamodules.datasets.scan import Unusable, scan
from datamodules.prepare.output import Output
from datamodules.prepare.packing import Plan, Reasons, arranged, below, bytes_of, cut, source_of
from datamodules.prepare.settings import Audio
from datamodules.prepare.tar import Sample, tar_bytes

_FLAC = 1.2  # bytes a sample of 16 kHz speech as FLAC, about (0.5 to 1.5)


class Sound(NamedTuple):
    """A sample to be: its file's name below the input, the piece of it, and whether that is the
    whole file."""

    name: str
    piece: Piece
    whole: bool


class Manifest(AudioFolder):
    """The files of a fairseq manifest: its first line a folder, the others ``path TAB frames``.

    The frames are read from the files again: a manifest may be older than they are.
    """

    def __init__(self, path: str, **settings: Any) -> None:
        lines = Path(path).read_text("utf-8", "surrogateescape").splitlines()
        self.manifest = path
        beside = os.path.join(os.path.dirname(path), lines[0].strip()) if lines else ""
        super().__init__(
            lines[0].strip() if lines and os.path.isdir(lines[0].strip()) else beside, **settings
        )
        if not lines or not os.path.isdir(self.root):
            raise ConfigError(
                "input", path, "must begin with a line that is a folder", "write it there"
            )
        self.rows = [
            os.path.join(self.root, line.split("\t")[0]) for line in lines[1:] if line.strip()
        ]

    @cached_property
    def files(self) -> dict[str, Piece]:
        """The usable files."""
        return scan(
            self.root, ENDINGS, self._check, self.skipped, self.max_bad_share, files=self.rows
        )


def plan(settings: Audio, _: Output) -> Plan:
    """Which sound goes to which shard."""
    limits = {"min_seconds": settings.min_seconds, "max_seconds": settings.max_seconds}
    no_labels = {"labels": None, "label_column": None, "split_column": None, "test_values": ()}
    rest: dict[str, Any] = {
        **limits,
        **no_labels,
        "max_bad_share": settings.max_bad_share,
        "skipped_path": None,
    }
    listed = settings.input.endswith(".tsv")
    folder = Manifest(settings.input, **rest) if listed else AudioFolder(settings.input, **rest)
    folder.skipped = reasons = Reasons(folder.root)
    files = folder.files
    sizes = {file: os.path.getsize(file) for file in files}
    sounds = [
        Sound(below(piece.file, folder.root), piece, piece.frames == files[piece.file].frames)
        for piece in folder.pieces
    ]
    sounds = [sounds[i] for i in arranged(len(sounds), settings)]
    made = np.array([_bytes(sound, sizes[sound.piece.file], settings.encode) for sound in sounds])
    make = partial(sample, encode=settings.encode, check=settings.check)
    return Plan(
        sounds,
        cut(made, settings),
        make,
        _name,
        float(made.sum()),
        source_of([(below(file, folder.root), size) for file, size in sizes.items()]),
        {"unit": f"samples at {RATE} Hz"},
        reasons.reasons,
        RATE * 3600,
    )


def _name(sound: Sound) -> str:
    return sound.name


def _bytes(sound: Sound, size: int, encode: str) -> int:
    """That the sample takes in a tar, about."""
    piece = sound.piece
    flac = not sound.whole or encode == "flac"
    return tar_bytes(
        int(piece.frames * RATE / piece.rate * _FLAC) if flac else size, len(sound.name) + 60
    )


def sample(sound: Sound, key: str, encode: str, check: str) -> Sample:
    """The members of a sound: itself and ``json`` (file, first frame in it, frames and rate in Hz
    of the member).

    Raises:
        Unusable: if it cannot be decoded.
    """
    piece = sound.piece
    if encode == "flac" or not sound.whole:
        wave = decode(piece)
        extension, data, frames, rate = "flac", flac(wave), len(wave), RATE
    else:
        extension, data = os.path.splitext(piece.file)[1][1:].lower(), bytes_of(piece.file)
        _check(data, piece.frames, check)
        frames, rate = piece.frames, piece.rate
    about = {"file": sound.name, "start": piece.start, "frames": frames, "rate": rate}
    length = -(-frames * RATE // rate)
    return Sample(key, {extension: data, "json": json.dumps(about).encode()}, length)


def flac(wave: np.ndarray) -> bytes:
    """A mono waveform at 16 kHz as FLAC of 16 bits; what is beyond full scale is clipped."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, RATE, "PCM_16", format="FLAC")
    return buffer.getvalue()


def _check(data: bytes, frames: int, check: str) -> None:
    """Decode what is kept, or its header, as a reader of the shard will: without the file's
    name."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            there, sound = file.frames, file.read(dtype="float32") if check == "decode" else None
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        raise Unusable(f"cannot be decoded ({error})") from None
    if (there := there if sound is None else len(sound)) != frames:
        raise Unusable(f"breaks off after {there:,} of {frames:,} frames")
    if sound is not None and not np.isfinite(sound).all():
        raise Unusable("has samples that are not finite")
