"""header(), mono(), waveform(): one audio file, of which neither header nor end is trusted."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import soundfile

from datamodules.datasets.resampling import check_rate, resampled
from datamodules.datasets.unusable import Unusable, reading

# Formats that libsndfile recognises by their content.
_COMPRESSED = (".flac", ".ogg", ".mp3", ".opus", ".oga")
ENDINGS = (".wav", *_COMPRESSED, ".aiff", ".aif", ".aifc", ".au", ".caf", ".w64", ".rf64")
_BLOCK = 1 << 22  # numbers that are decoded at a time: 43 s of 48 kHz stereo
_PER_BYTE = 100  # frames; a header that says more is not believed, and the frames are counted
_MOST = 1 << 32  # frames that are counted at most: 74 hours at 16 kHz
MISSING = 0.1  # seconds; some MP3 files say their length only about
_OPPOSITE = 1e-3  # power of the mean of channels that cancel out, as a share of theirs
_OGG_HEAD, _OGG_TAIL = 1 << 20, 1 << 16  # bytes in which the pages of an Ogg file are looked at
_PAGE = re.compile(rb"OggS\0([\0-\7]).{8}(.{4})", re.DOTALL)  # flags and number of its stream


class _Forwards(soundfile.SoundFile):
    """An audio file that is read from a place on.

    After each read soundfile seeks to where libsndfile is already, which fails at the end of a FLAC
    of unknown length. It does not for files that cannot be seeked.
    """

    def seekable(self) -> bool:
        return False

    def blocks_of(self, frames: int) -> Iterator[np.ndarray]:
        """At most so many frames, in arrays (frames, channels) float32. Memory for frames that are
        declared but not there is not taken."""
        most = max(1, _BLOCK // self.channels)
        while frames > 0 and len(block := self.read(min(most, frames), "float32", always_2d=True)):
            frames -= len(block)
            yield block


def header(file: str | BinaryIO) -> tuple[int, int]:
    """Number of frames of an audio file and its sample rate in Hz, from its header.

    Frames are counted, by decoding them, where the header does not know their number or declares
    more than 100 for each byte of the file.

    Args:
        file: path, or open file.

    Raises:
        Unusable: if it is no audio file, or one whose sound cannot be read to its end.
    """
    with reading("not readable as audio"):
        if isinstance(file, str) and not file.isascii():
            _check_name(file)
        _refuse_chained(file)
        with _Forwards(file) as sound:
            check_rate(sound.samplerate)
            frames = sound.frames
            if frames > _PER_BYTE * _bytes(file):
                frames = sum(map(len, sound.blocks_of(_MOST)))
                if frames == _MOST:
                    raise Unusable(f"has more than {_MOST:,} frames")
            return frames, sound.samplerate


def waveform(file: str | BinaryIO, start: int = 0, frames: int | None = None) -> np.ndarray:
    """The (samples,) float32 mono waveform at 16 kHz; see ``mono``."""
    return resampled(*mono(file, start, frames))


def mono(file: str | BinaryIO, start: int = 0, frames: int | None = None) -> tuple[np.ndarray, int]:
    """The (frames,) float32 mean of all channels, and the sample rate in Hz.

    Where the channels cancel out, as those of a balanced line that was recorded as stereo, it is
    the loudest channel: their mean would be silence.

    Args:
        file: path, or open file.
        start, frames: the first frame to read and how many; by default all frames.

    Raises:
        Unusable: if it cannot be decoded, breaks off before the end that its header says, or is not
            finite.
    """
    with reading("cannot be decoded"):
        wave, power, rate = _mixed(file, start, frames, None)
        # The dot product is finite if all samples are; it takes half the time of isfinite().all().
        if not len(wave) or not math.isfinite(np.dot(wave, wave)):
            raise Unusable("has no sound, or samples that are not finite")
        if len(power) > 1 and wave.var(dtype=np.float64) < _OPPOSITE * power.mean():
            wave, _, rate = _mixed(file, start, frames, int(power.argmax()))
        return wave, rate


def _mixed(
    file: str | BinaryIO, start: int, frames: int | None, channel: int | None
) -> tuple[np.ndarray, np.ndarray, int]:
    """The mean of all channels, or one channel; the variance of each channel; the sample rate."""
    if not isinstance(file, str):
        file.seek(0)
    with _Forwards(file) as sound:
        check_rate(sound.samplerate)
        believed = sound.frames <= _PER_BYTE * _bytes(file)
        declared = sound.frames - start if believed else _MOST
        wanted = declared if frames is None else frames
        if start:
            sound.seek(start)
        parts, count = [], 0
        total = squares = np.zeros(sound.channels)
        for block in sound.blocks_of(wanted):
            count += len(block)
            if sound.channels > 1 and channel is None:
                total = total + block.sum(0, dtype=np.float64)
                squares = squares + np.einsum("nc,nc->c", block, block, dtype=np.float64)
                parts.append(block.mean(1))
            else:
                parts.append(block[:, channel or 0])
        expected = wanted if believed or frames is not None else 0
        if count < expected - MISSING * sound.samplerate:
            raise Unusable(f"breaks off after {count:,} of {expected:,} frames")
        wave = np.concatenate(parts) if len(parts) != 1 else parts[0]
        power = squares / max(count, 1) - (total / max(count, 1)) ** 2
        return np.ascontiguousarray(wave), power, sound.samplerate


def _check_name(file: str) -> None:
    try:
        file.encode()
    except UnicodeEncodeError:  # soundfile cannot open it
        raise Unusable("its name is not UTF-8") from None


def _bytes(file: str | BinaryIO) -> int:
    if isinstance(file, str):
        return os.path.getsize(file)
    place, size = file.tell(), file.seek(0, os.SEEK_END)
    file.seek(place)
    return size


def _refuse_chained(file: str | BinaryIO) -> None:
    """Raise ``Unusable`` for Ogg files that hold several recordings one after another, of which
    libsndfile reads the first: a recording begins after a page of another, or has another number at
    the end of the file.
    """
    if isinstance(file, str):
        with open(file, "rb") as opened:
            return _refuse_chained(opened)
    file.seek(0)
    if file.read(4) != b"OggS":
        file.seek(0)
        return
    head = b"OggS" + file.read(_OGG_HEAD)
    file.seek(max(0, _bytes(file) - _OGG_TAIL))
    tail = list(_PAGE.finditer(file.read()))
    file.seek(0)
    first, begun = set(), False
    for page in _PAGE.finditer(head):
        begins = bool(page[1][0] & 2)
        if begins and begun:
            break
        begun = begun or not begins
        first |= {page[2]} if begins else set()
    else:
        if not tail or tail[-1][2] in first:
            return
    rule = "holds several recordings one after another (chained Ogg), of which one can be read"
    raise Unusable(f"{rule}: divide it into one file for each")
