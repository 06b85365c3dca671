"""Sound: kept byte by byte or encoded again, cut where too long, bad files named; fairseq's
manifests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from tests.prepare.commands import manifest, prepare, read, said, skipped, sound, sounds


def test_bytes_are_kept_and_sources_named(tmp_path: Path) -> None:
    root = sounds(tmp_path / "in")
    assert prepare("audio", root, tmp_path / "out", "shard_samples=5") == 0
    samples = read(tmp_path / "out")
    seen = {}
    for n, sample in enumerate(samples):
        assert sample["__key__"] == f"{n:09d}"
        about = json.loads(sample["json"])
        [extension] = set(sample) & {"wav", "flac", "ogg"}
        file = root / about["file"]
        assert sample[extension] == file.read_bytes() and file.suffix == f".{extension}"
        info = soundfile.info(str(file))
        assert (about["start"], about["frames"], about["rate"]) == (0, info.frames, info.samplerate)
        seen[about["file"]] = -(-info.frames * 16_000 // info.samplerate)
    assert len(seen) == len(samples) == 12 and list(seen) != sorted(seen)
    made = manifest(tmp_path / "out")
    assert (made["samples"], made["length"], made["skipped"]) == (12, sum(seen.values()), 0)
    assert made["hours"] == pytest.approx(sum(seen.values()) / 16_000 / 3600, abs=1e-4)
    assert [shard["samples"] for shard in made["shards"]] == [5, 5, 2]


def test_flac_is_16_khz_mono_and_near_the_source(tmp_path: Path) -> None:
    root = sounds(tmp_path / "in")
    assert prepare("audio", root, tmp_path / "out", "encode=flac", "order=sorted") == 0
    samples = read(tmp_path / "out")
    names = [json.loads(sample["json"])["file"] for sample in samples]
    assert names == sorted(names) and len(names) == 12
    for sample, name in zip(samples, names):
        wave, rate = sound(sample["flac"])
        source, before = soundfile.read(str(root / name), dtype="float32", always_2d=True)
        expected = torchaudio.functional.resample(
            torch.from_numpy(source.mean(1)), before, 16_000
        ).numpy()
        assert rate == 16_000 and wave.shape == (len(expected), 1) == (
            json.loads(sample["json"])["frames"],
            1,
        )
        assert np.abs(wave[:, 0] - expected).max() <= 1.1 / 2**15


def test_long_files_are_cut_into_equal_parts(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    ramp = np.linspace(-0.9, 0.9, 25_001).astype(np.float32)
    soundfile.write(str(root / "long.wav"), ramp, 16_000, "PCM_16")
    assert prepare("audio", root, tmp_path / "out", "max_seconds=0.6", "order=sorted") == 0
    samples = read(tmp_path / "out")
    about = [json.loads(sample["json"]) for sample in samples]
    assert [row["start"] for row in about] == [0, 8333, 16_667]
    joined = np.concatenate([sound(sample["flac"])[0][:, 0] for sample in samples])
    assert np.array_equal(joined, soundfile.read(str(root / "long.wav"), dtype="float32")[0])


def test_bad_files_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = sounds(tmp_path / "in", 12)
    (root / "noise.wav").write_bytes(b"RIFFnothing of the kind")
    (root / "empty.flac").write_bytes(b"")
    (root / "notes.txt").write_text("not sound")
    soundfile.write(str(root / "short.wav"), np.zeros(100), 16_000)
    soundfile.write(
        str(root / "torn.flac"), np.random.default_rng(0).normal(0, 0.1, 60_000), 16_000
    )
    (root / "torn.flac").write_bytes((root / "torn.flac").read_bytes()[:50_000])
    soundfile.write(str(root / "inf.wav"), np.full(8000, np.inf), 16_000, "FLOAT")
    os.rename(root / "speaker0/take.0.wav", os.fsencode(root) + b"/na\xefve.wav")
    assert prepare("audio", root, tmp_path / "out", "max_bad_share=0.5") == 0
    reasons = skipped(tmp_path / "out")
    assert reasons.pop("na\udcefve.wav") == "its name is not UTF-8"
    assert set(reasons) == {
        "noise.wav",
        "empty.flac",
        "notes.txt",
        "short.wav",
        "torn.flac",
        "inf.wav",
    }
    assert (
        "not readable as audio" in reasons["noise.wav"]
        and "too short: 0.006 s" in reasons["short.wav"]
    )
    assert "not finite" in reasons["inf.wav"]
    assert len(read(tmp_path / "out")) == manifest(tmp_path / "out")["samples"] == 11
    assert "7 files were left out" in said(capsys)
    assert prepare("audio", root, tmp_path / "fewer") == 2
    assert "more than max_bad_share=0.1 allows" in (told := said(capsys)) and "data." not in told


def test_too_much_that_breaks_off_stops_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = sounds(tmp_path / "in", 6)
    for file in root.rglob("*.flac"):
        file.write_bytes(file.read_bytes()[:-400])
    assert prepare("audio", root, tmp_path / "out", "shard_samples=2") == 2
    assert (
        "unusable, more than max_bad_share=0.1 allows" in (told := said(capsys))
        and "take.1.flac" in told
    )
    assert prepare("audio", root, tmp_path / "out", "shard_samples=2") == 2
    assert not (tmp_path / "out/manifest.json").exists()
    assert prepare("audio", root, tmp_path / "out", "shard_samples=2", "max_bad_share=0.5") == 0
    assert len(skipped(tmp_path / "out")) == 2


def test_a_fairseq_manifest_chooses_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = sounds(tmp_path / "in")
    rows = ["speaker0/take.0.wav\t2400", "speaker1/take.1.flac\t7056", "speaker0/lost.wav\t9"]
    for first in (str(root), "in"):  # as fairseq writes it, and relative to the manifest
        (tmp_path / "train.tsv").write_text("\n".join([first, *rows]) + "\n")
        output = tmp_path / f"out{len(first)}"
        assert prepare("audio", tmp_path / "train.tsv", output, "max_bad_share=0.5") == 0
        found = {json.loads(sample["json"])["file"] for sample in read(output)}
        assert found == {"speaker0/take.0.wav", "speaker1/take.1.flac"} and set(
            skipped(output)
        ) == {"speaker0/lost.wav"}
    (tmp_path / "train.tsv").write_text("nowhere\n")
    assert prepare("audio", tmp_path / "train.tsv", tmp_path / "other") == 2
    assert "must begin with a line that is a folder" in said(capsys)
