"""Voices: twenty synthetic speakers, whose phones are filtered pulses and noise, in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from d2v_pretrain.rng import fold_in
from datamodules.datasets.base import RATE

# Pairs of words with the same phones.
WORDS = ("sai", "ias", "tum", "mut", "lofe", "felo", "xame", "mexa", "otil", "lito")
SPEAKERS = 20
# A hop is 10 ms. Windows are two hops, 320 samples, long. The transform has 512 samples, so that
# the output of the filters, which is longer than their input, fits.
HOP, FFT = 160, 512
_WINDOW = np.hanning(2 * HOP + 1)[:-1].astype(np.float32)  # shifted by a hop they sum to one
_Z = np.exp(-2j * np.pi * np.arange(FFT // 2 + 1) / FFT)


@dataclass(frozen=True)
class Phone:
    """A speech sound.

    Args:
        centres, widths: of its resonances, in Hz; noise has only the first.
        level: amplitude.
        frames: length in frames of 10 ms.
        voiced: whether it is filtered pulses, or filtered noise.
    """

    centres: tuple[float, float, float]
    widths: tuple[float, float, float]
    level: float
    frames: int
    voiced: bool = True


def _noise(centre: float, width: float, level: float, frames: int) -> Phone:
    return Phone((centre, 0, 0), (width, 0, 0), level, frames, voiced=False)


_VOWEL = (80.0, 110.0, 160.0)
PHONES = {
    "a": Phone((730, 1250, 2600), _VOWEL, 1.0, 11),
    "i": Phone((280, 2250, 3000), _VOWEL, 0.8, 11),
    "u": Phone((310, 800, 2300), _VOWEL, 0.8, 11),
    "e": Phone((500, 1850, 2600), _VOWEL, 0.9, 11),
    "o": Phone((480, 900, 2500), _VOWEL, 0.9, 11),
    "m": Phone((260, 1100, 2200), (60.0, 250.0, 300.0), 0.45, 7),
    "l": Phone((360, 1300, 2900), (80.0, 150.0, 200.0), 0.55, 7),
    "s": _noise(5800, 1400.0, 0.35, 10),
    "f": _noise(3800, 5000.0, 0.2, 9),
    "x": _noise(2600, 800.0, 0.35, 9),
    "t": _noise(4200, 2600.0, 0.7, 5),  # silence but for its last frame
}


class Voices:
    """The speakers, the table of which words follow which, and the synthesis of speech.

    Args:
        seed: everything is a function of it and of the index of the item.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = np.random.default_rng(fold_in(seed, 0))
        height = rng.permutation(np.linspace(0, 1, SPEAKERS))
        self.pitch = 85 * (260 / 85) ** height  # Hz
        # Speakers with high voices tend to have short vocal tracts.
        self.tract = np.clip(0.85 + 0.35 * height + rng.normal(0, 0.04, SPEAKERS), 0.85, 1.2)
        self.successors = np.stack([rng.permutation(len(WORDS))[:3] for _ in WORDS])
        # Noise is cut from one long stretch at random places: new noise would double the time.
        self.noise = rng.standard_normal(1 << 20, np.float32)

    def sequence(self, index: int, speakers: int) -> np.ndarray:
        """(S,) int16: 3 to 6 words by one of the first ``speakers`` speakers.

        Each word is one of three successors of the word before, with probabilities .6, .3 and .1.
        """
        rng = np.random.default_rng(fold_in(self.seed, 1, index))
        said = [int(rng.integers(len(WORDS)))]
        for _ in range(int(rng.integers(2, 6))):
            said.append(int(self.successors[said[-1], rng.choice(3, p=(0.6, 0.3, 0.1))]))
        return self._say(rng, int(rng.integers(speakers)), said)

    def word(self, index: int) -> tuple[np.ndarray, int, int]:
        """(S,) int16, the number of the word and of the speaker, both drawn at random."""
        rng = np.random.default_rng(fold_in(self.seed, 2, index))
        word, speaker = int(rng.integers(len(WORDS))), int(rng.integers(SPEAKERS))
        return self._say(rng, speaker, [word]), word, speaker

    def _say(self, rng: np.random.Generator, speaker: int, said: list[int]) -> np.ndarray:
        filters, of_frame, level, voiced = self._score(rng, speaker, said)
        n = len(of_frame) * HOP
        starts = rng.integers(len(self.noise) - n, size=2)
        hum = _pulses(self.pitch[speaker] * rng.uniform(0.92, 1.08) * _melody(rng, len(of_frame)))
        transform = np.where(np.repeat(voiced, HOP), hum, self.noise[starts[0] : starts[0] + n])
        transform *= np.repeat(level.astype(np.float32), HOP)
        speech = _filter(transform, filters[of_frame])
        hiss = np.sqrt(np.mean(speech**2)) * 10 ** (-rng.uniform(5, 25) / 20)  # 5 to 25 dB below
        sound = speech + np.float32(hiss) * self.noise[starts[1] : starts[1] + n]
        scale = 32767 * rng.uniform(0.1, 0.9) / np.abs(sound).max()
        return (sound * np.float32(scale)).astype(np.int16)

    def _score(
        self, rng: np.random.Generator, speaker: int, said: list[int]
    ) -> tuple[np.ndarray, ...]:
        """The filters of the P phones and of silence, (P + 1, FFT/2 + 1); and for each frame which
        filter, level and voicing it has."""
        phones = [PHONES[name] for word in said for name in WORDS[word]]
        scale = self.tract[speaker] * rng.normal(1, 0.04, (len(phones), 3))
        tempo = np.repeat(rng.uniform(0.75, 1.35, len(said)), [len(WORDS[word]) for word in said])
        frames = np.rint(
            [p.frames for p in phones] / tempo * rng.uniform(0.85, 1.15, len(phones))
        ).astype(int)
        level = np.array([p.level for p in phones]) * rng.uniform(0.8, 1.2, len(phones))
        order, lengths = self._with_pauses(rng, said, frames)
        of_frame = np.repeat(order, lengths)
        loud = np.append(level, 0)[of_frame]
        ends = np.cumsum(lengths)
        for i in np.flatnonzero([PHONES["t"] is p for p in phones]):
            end = int(ends[order == i][0])
            loud[end - int(frames[i]) : end - 1] = 0
        voiced = np.append([p.voiced for p in phones], False)[of_frame]
        return _responses(phones, scale), of_frame, loud, voiced

    def _with_pauses(
        self, rng: np.random.Generator, said: list[int], frames: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """For each phone and pause, which filter it has (-1 for pauses) and how many frames.

        Pauses are 0 to 80 ms between words, 30 to 120 ms before the first and after the last.
        """
        pauses = rng.integers(9, size=len(said) + 1)
        pauses[[0, -1]] = rng.integers(3, 13, size=2)
        before = np.cumsum([0, *(len(WORDS[word]) for word in said)])
        return np.insert(np.arange(len(frames)), before, -1), np.insert(frames, before, pauses)


def _responses(phones: list[Phone], scale: np.ndarray) -> np.ndarray:
    """All-pole filters of unit power for P phones, and a last one for silence: (P + 1, FFT/2 + 1)
    complex64.

    ``scale`` (P, 3) is a factor of the resonances; the resonances of noise move half as far, and
    only the first is used.
    """
    centres = np.array([phone.centres for phone in phones], np.float64)
    widths = np.array([phone.widths for phone in phones], np.float64)
    voiced = np.array([phone.voiced for phone in phones])[:, None]
    poles = np.exp(
        (2j * centres * np.where(voiced, scale, (1 + scale) / 2) - widths) * (np.pi / RATE)
    )
    poles[~voiced[:, 0], 1:] = 0
    # (1 - p z)(1 - p* z) = 1 - 2 Re(p) z + |p|^2 z^2
    denominators = 1 - (2 * poles.real)[..., None] * _Z + (np.abs(poles) ** 2)[..., None] * _Z**2
    denominators = denominators.prod(1) * np.where(voiced, 1 - 0.94 * _Z, 1)  # spectral tilt
    filters = np.zeros((len(phones) + 1, len(_Z)), np.complex64)
    filters[:-1] = 1 / (
        denominators * np.sqrt(np.mean(np.abs(denominators) ** -2.0, axis=1, keepdims=True))
    )
    return filters


def _melody(rng: np.random.Generator, frames: int) -> np.ndarray:
    """(frames,) factor of the pitch: falling by a tenth, with vibrato of 2 % at 4 to 7 Hz."""
    seconds = np.arange(frames) * HOP / RATE
    vibrato = 0.02 * np.sin(2 * np.pi * (rng.uniform(4, 7) * seconds + rng.random()))
    return np.linspace(1.05, 0.95, frames) * (1 + vibrato)


def _pulses(pitch: np.ndarray) -> np.ndarray:
    """(frames * HOP,) float32 pulse train of unit power at ``pitch`` (frames,) in Hz."""
    phase = np.cumsum(np.repeat(pitch / RATE, HOP))
    at = np.searchsorted(phase, np.arange(1, int(phase[-1]) + 1))  # where a period ends
    train = np.zeros(len(phase), np.float32)
    train[at] = np.sqrt(RATE / pitch[at // HOP])
    return train


def _filter(transform: np.ndarray, response: np.ndarray) -> np.ndarray:
    """(S,) float32: windows of two hops, filtered by ``response`` (S/HOP, FFT/2 + 1) and added."""
    frames = len(response)
    padded = np.concatenate([transform, np.zeros(HOP, np.float32)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * HOP)[::HOP] * _WINDOW
    spectrum = np.fft.rfft(windows, FFT)
    spectrum *= response
    pieces = np.fft.irfft(spectrum, FFT)
    sound = np.zeros((frames + 4, HOP), np.float32)
    for i, start in enumerate(range(0, FFT, HOP)):  # a window's output reaches into four hops
        part = pieces[:, start : start + HOP]
        sound[i : i + frames, : part.shape[1]] += part
    return sound[:frames].reshape(-1)
