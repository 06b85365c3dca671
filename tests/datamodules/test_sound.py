"""Audio files whose header, end or channels are not what they should be; any sample rate."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from datamodules.datasets import sound
from datamodules.datasets.resampling import _interpolated, resampled
from datamodules.datasets.sound import header, mono, waveform
from datamodules.datasets.unusable import Unusable
from datamodules.prepare.audio import _check as prepared
from datamodules.shards.index import length_of
from tests.datamodules.test_folder import audio, listed


def noise(frames: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal((frames, channels))).astype("f4")


def encoded(wave: np.ndarray, form: str, subtype: str | None = None, rate: int = 16_000) -> bytes:
    made = io.BytesIO()
    with soundfile.SoundFile(made, "w", rate, wave.shape[1], subtype, None, form) as f:
        for start in range(0, len(wave), 10_000):  # libsndfile crashes when it writes much Vorbis
            f.write(wave[start : start + 10_000])
    return made.getvalue()


def declared(flac: bytes, frames: int) -> bytes:
    """A FLAC whose STREAMINFO (RFC 9639: 36 bits from byte 21.5) says this number of frames."""
    field = int.from_bytes(flac[18:26], "big") >> 36 << 36
    return flac[:18] + (field | frames).to_bytes(8, "big") + flac[26:]


@pytest.mark.parametrize(
    "form, subtype",
    [("WAV", "FLOAT"), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)],
)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_blocks_give_what_soundfile_reads_at_once(
    form: str, subtype: str, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, over several blocks, from the beginning and from the middle."""
    if channels == 3 and form == "MP3":
        pytest.skip("MP3 has two channels")
    monkeypatch.setattr(sound, "_BLOCK", 10_000)
    data = encoded(noise(60_000, channels), form, subtype)
    for start, frames in ((0, -1), (20_000, 30_000)):
        known, _ = soundfile.read(io.BytesIO(data), frames, start, None, "float32", True)
        found, rate = mono(io.BytesIO(data), start, None if frames < 0 else frames)
        # The last bit of libmpg123 depends on where it begins to decode.
        tolerance = 1e-7 if form == "MP3" else 0
        assert rate == 16_000
        np.testing.assert_allclose(found, known.mean(1), rtol=0, atol=tolerance)


@pytest.mark.parametrize("frames", [0, 2**36 - 1, 10**9])
def test_a_flac_of_unknown_or_impossible_length_has_the_length_that_it_decodes_to(
    tmp_path: Path, frames: int
) -> None:
    wave = noise(32_000)
    data = declared(encoded(wave, "FLAC"), frames)
    (tmp_path / "a.flac").write_bytes(data)
    dataset = audio(tmp_path)
    assert dataset.lengths.tolist() == [32_000] == [length_of({"flac": data})]
    assert np.allclose(dataset.read(0), wave[:, 0], atol=1e-4)
    parts = audio(tmp_path, max_seconds=0.7)
    assert parts.lengths.sum() == 32_000
    assert np.array_equal(np.concatenate([parts.read(i) for i in range(3)]), dataset.read(0))
    prepared(data, 32_000, "decode")


@pytest.mark.parametrize("form, keep", [("FLAC", 0.5), ("MP3", 0.5), ("OGG", 0.4)])
def test_a_file_that_breaks_off_is_refused_by_all_readers(form: str, keep: float) -> None:
    data = encoded(noise(64_000), form)
    data = data[: int(keep * len(data))]
    frames = header(io.BytesIO(data))[0]
    if frames == 64_000:  # the header does not know of the end
        with pytest.raises(Unusable, match=r"breaks off|cannot be decoded"):
            waveform(io.BytesIO(data))
        with pytest.raises(Unusable, match=r"breaks off|cannot be decoded"):
            prepared(data, frames, "decode")
    else:  # the last whole page says where it ends
        assert len(waveform(io.BytesIO(data))) == frames < 64_000


def test_chained_ogg_is_refused_by_name(tmp_path: Path) -> None:
    first, second = (encoded(noise(32_000, seed=seed), "OGG", "VORBIS") for seed in range(2))
    long = encoded(noise(4_500_000), "OGG", "VORBIS")  # more than is looked at from its beginning
    opus = encoded(noise(16_000), "OGG", "OPUS")
    chains = {"ab": first + second, "aa": first + first, "long": long + second, "opus": opus + opus}
    assert len(long) > 1 << 20
    for name, data in (chains | {"one": first, "two": long, "three": opus}).items():
        (tmp_path / f"{name}.{'opus' if data.startswith(opus) else 'ogg'}").write_bytes(data)
    log = tmp_path / "skipped.jsonl"
    dataset = audio(tmp_path, skipped_path=str(log), max_bad_share=0.9, max_seconds=1000)
    assert len(dataset) == 3
    reasons = {name: why for name, why in listed(log).items() if "chained" in why}
    assert {Path(name).stem for name in reasons} == set(chains)


@pytest.mark.parametrize("rate", [1, 99, 1_000_001, 2**31 - 1])
def test_sample_rates_of_no_recording_are_refused_by_name(tmp_path: Path, rate: int) -> None:
    data = bytearray(encoded(noise(32_000), "WAV"))
    data[24:28] = struct.pack("<I", rate)
    with pytest.raises(Unusable, match=f"sample rate of {rate:,} Hz"):
        header(io.BytesIO(data))
    with pytest.raises(Unusable, match=f"sample rate of {rate:,} Hz"):
        waveform(io.BytesIO(data))


@pytest.mark.parametrize("rate", [400, 8000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_usual_rates_are_resampled_by_torchaudio_and_the_table_agrees(rate: int) -> None:
    wave = noise(rate)[:, 0]
    known = torchaudio.transforms.Resample(rate, 16_000)(torch.from_numpy(wave)).numpy()
    assert np.array_equal(resampled(wave, rate), known)
    assert np.abs(_interpolated(wave, rate) - known).max() < 1e-4


@pytest.mark.parametrize("rate", [101, 7999, 15_999, 16_001, 44_101, 192_001, 999_999])
def test_a_tone_at_any_rate_keeps_its_pitch_and_its_level(rate: int) -> None:
    hertz = min(440.0, rate / 4)
    wave = np.sin(2 * np.pi * hertz * np.arange(2 * rate - 1) / rate).astype(np.float32)
    found = resampled(wave, rate)
    assert len(found) == -(-len(wave) * 16_000 // rate)
    middle = np.arange(8000, 24_000)
    assert np.abs(found[middle] - np.sin(2 * np.pi * hertz * middle / 16_000)).max() < 0.01


def test_channels_that_cancel_out_give_one_of_them(tmp_path: Path) -> None:
    wave, other = noise(20_000)[:, 0], noise(20_000, seed=1)[:, 0]
    for channels, expected in [
        ([wave, -wave], wave),
        ([0.5 * wave, -0.51 * wave + 0.2], -0.51 * wave + 0.2),  # with an offset
        ([wave, -0.98 * wave], wave),
        ([other, -other, 0.1 * wave, -0.1 * wave], other),
        ([wave, -0.5 * wave], (wave - 0.5 * wave) / 2),  # only quieter
        ([wave, other], (wave + other) / 2),
        ([0 * wave, 0 * wave], 0 * wave),
    ]:
        data = encoded(np.stack(channels, 1), "WAV", "FLOAT")
        found = waveform(io.BytesIO(data))
        assert np.allclose(found, expected, atol=1e-6) or np.allclose(found, -expected, atol=1e-6)
