"""The doctor: planted defects of each kind are found and nothing else is; the simulated pass
against plain loops."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from datamodules.datasets.base import Dataset
from datamodules.doctor.__main__ import main
from datamodules.doctor.report import histogram
from datamodules.doctor.simulate import simulate
from datamodules.module import PretrainDataModule
from datamodules.order import StepSampler
from datamodules.transforms.audio import AudioTransform


def doctor(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> int:
    """``python -m datamodules.doctor …`` in a folder; the exit code."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["doctor", *words, "name=run", "trainer=cpu"])
    return main()


def said(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "runs" / "run" / "doctor" / "doctor.json").read_text())


def which(folder: Path) -> dict[str, set[str]]:
    """Kind of defect -> names of files, without folders and reasons."""
    found = said(folder)["findings"]
    return {
        kind: {Path(name.partition(": ")[0].partition(" = ")[0]).name for name in f["which"]}
        for kind, f in found.items()
    }


def sound(path: Path, wave: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(str(path), wave, 16_000)


def flip(path: Path) -> None:
    """Ruin the second half of a file."""
    content = path.read_bytes()
    path.write_bytes(
        content[: len(content) // 2] + bytes(b ^ 0x55 for b in content[len(content) // 2 :])
    )


def test_sound_with_every_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, rng, time = tmp_path / "data", np.random.default_rng(0), np.arange(16_000) / 16_000
    for i in range(20):
        sound(
            root / f"good{i:02}.wav",
            0.4 * np.sin(2 * np.pi * (200 + 20 * i) * time) + rng.normal(0, 0.01, 16_000),
        )
    sound(root / "quiet.wav", rng.normal(0, 0.001, 16_000))
    speech = rng.laplace(0, 0.1, 16_000)
    sound(root / "full.wav", speech / np.abs(speech).max())  # scaled to full scale: not clipped
    sound(root / "silent.wav", np.zeros(16_000))
    sound(root / "offset.flac", np.full(9000, 0.25))
    sound(root / "clipped.wav", np.clip(3 * np.sin(2 * np.pi * 300 * time), -1, 1))
    (root / "deep").mkdir()
    (root / "deep" / "copy.wav").write_bytes((root / "good07.wav").read_bytes())
    sound(root / "good03.flac", rng.normal(0, 0.1, 5000))
    sound(root / "ruined.flac", rng.normal(0, 0.1, 16_000))
    flip(root / "ruined.flac")
    (root / "empty.wav").touch()
    (root / "words.mp3").write_text("this is no sound")
    sound(root / "blip.wav", rng.normal(0, 0.1, 800))
    (root / "notes.txt").write_text("not sound, and not looked at")
    words = ["modality=audio", "data=folder", f"data.root={root}"]
    assert doctor(monkeypatch, tmp_path, *words) == 0
    assert which(tmp_path) == {
        "unusable": {"empty.wav", "words.mp3", "blip.wav"},
        "unreadable": {"ruined.flac"},
        "silent": {"silent.wav", "offset.flac"},
        "clipped": {"clipped.wav"},
        "same content": {"good07.wav"},
        "same name": {"good03.wav"},
    }
    result = said(tmp_path)
    assert (
        result["items"] == result["examined"] == 28
        and result["findings"]["unusable"]["share"] == 3 / 31
    )
    seconds = 25 + 9000 / 16_000 + 5000 / 16_000
    assert (
        result["length"]["total"] == pytest.approx(seconds)
        and result["length"]["unit"] == "seconds"
    )
    assert "too short: 0.050 s" in str(result["findings"]["unusable"]["which"])
    printed = capsys.readouterr().out
    assert (
        "28 utterances of 28 audio files" in printed
        and "same content" in printed
        and "optimizer steps" in printed
    )
    assert {p.name for p in (tmp_path / "runs/run/doctor").iterdir()} == {
        "doctor.json",
        "lengths.png",
        "skipped.jsonl",
    }

    assert doctor(monkeypatch, tmp_path, *words, "data.max_bad_share=0.05") == 1
    assert said(tmp_path)["above"] == ["unusable", "silent"]
    assert doctor(monkeypatch, tmp_path, *words, "sample=7") == 0
    assert said(tmp_path)["examined"] == 7 and said(tmp_path)["items"] == 28
    assert doctor(monkeypatch, tmp_path, *words, "max_tokens=100") == 1
    assert "max_tokens=100 is less than one sample of 16000" in capsys.readouterr().out


def picture(path: Path, pixels: np.ndarray, **save: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **save)


def test_images_with_every_defect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, rng = tmp_path / "data", np.random.default_rng(0)

    def colours(*size: int) -> np.ndarray:
        return rng.integers(0, 256, (*size, 3)).astype(np.uint8)

    for i in range(20):
        picture(root / f"good{i:02}.png", colours(40, 33))
    picture(root / "pale.png", 200 + colours(40, 40) // 16)
    grey = rng.integers(0, 256, (40, 40)).astype(np.uint8)
    picture(root / "grey.png", grey)
    picture(root / "grey_as_colours.jpg", np.stack([255 - grey] * 3, 2), quality=60)
    picture(root / "constant.png", np.full((40, 40, 3), (10, 200, 30), np.uint8))
    picture(root / "tiny.png", colours(15, 40))
    picture(root / "smallest.png", colours(4, 40))
    picture(root / "deep" / "copy.bmp", np.asarray(Image.open(root / "good05.png")))
    (root / "deep" / "copy.bmp").unlink()
    picture(
        root / "deep" / "copy.png", np.asarray(Image.open(root / "good05.png")), compress_level=1
    )
    picture(root / "good09.jpg", colours(40, 40))
    picture(root / "cut.png", colours(90, 90))
    (root / "cut.png").write_bytes((root / "cut.png").read_bytes()[:3000])
    (root / "words.jpg").write_text("this is no image")
    assert doctor(monkeypatch, tmp_path, "modality=vision", "data=folder", f"data.root={root}") == 0
    assert which(tmp_path) == {
        "unusable": {"smallest.png", "words.jpg"},
        "unreadable": {"cut.png"},
        "grey": {"grey.png", "grey_as_colours.jpg"},
        "constant": {"constant.png"},
        "tiny": {"tiny.png"},
        "same content": {"good05.png"},
        "same name": {"good09.png"},
    }


def test_texts_with_every_defect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data"
    root.mkdir()
    lines = [f"Sentence number {i} says something that no other says." for i in range(200)]
    (root / "a.txt").write_text("\n".join([*lines, "no", lines[3]]))
    (root / "blank.txt").write_text(" \n")
    (root / "latin.txt").write_bytes("grün".encode("latin-1"))
    small = ["transform.vocab_size=300", "transform.block=16"]
    assert (
        doctor(monkeypatch, tmp_path, "modality=text", "data=folder", f"data.root={root}", *small)
        == 0
    )
    found = said(tmp_path)["findings"]
    assert {kind: f["count"] for kind, f in found.items()} == {
        "unusable": 2,
        "short": 1,
        "same content": 1,
    }
    assert found["short"]["which"] == ["text 201: 'no'"]
    assert found["same content"]["which"][0].startswith("text 202: 'Sentence number 3 ")


def test_a_set_by_name_and_the_embedded_data_are_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        doctor(
            monkeypatch,
            tmp_path,
            "modality=vision",
            "data.images=64",
            "data.train=10",
            "data.test=10",
        )
        == 0
    )
    assert said(tmp_path)["findings"] == {} and said(tmp_path)["items"] == 64
    for who in ("theo", "lucas"):
        for n in range(6):
            noise = np.random.default_rng([n, len(who)]).normal(0, 0.1, 6000)
            sound(tmp_path / "fsdd" / "recordings" / f"{n}_{who}_0.wav", noise)
    assert (
        doctor(
            monkeypatch, tmp_path, "modality=audio", "data=fsdd", f"data.root={tmp_path / 'fsdd'}"
        )
        == 0
    )
    assert said(tmp_path)["findings"] == {} and said(tmp_path)["items"] == 6


def tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def flac(wave: np.ndarray) -> bytes:
    made = io.BytesIO()
    soundfile.write(made, wave, 16_000, format="FLAC")
    return made.getvalue()


def test_shards_with_defects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    first = {f"{i:03}.flac": flac(rng.normal(0, 0.1, 8000)) for i in range(12)}
    second = {
        f"{i:03}.flac": flac(rng.normal(0, 0.1, 8000)) for i in range(11, 23)
    }  # 011 is in both
    second["020.flac"] = first["004.flac"]
    second["023.flac"] = flac(np.zeros(8000))
    ruined = first["006.flac"]
    first["006.flac"] = ruined[: len(ruined) // 2] + bytes(
        b ^ 0x55 for b in ruined[len(ruined) // 2 :]
    )
    tar(tmp_path / "data" / "a.tar", first)
    tar(tmp_path / "data" / "b.tar", second)
    assert (
        doctor(
            monkeypatch, tmp_path, "modality=audio", "data=shards", f"data.root={tmp_path / 'data'}"
        )
        == 0
    )
    found = {
        kind: [name.partition(" = ")[0] for name in f["which"]]
        for kind, f in said(tmp_path)["findings"].items()
    }
    assert {
        kind: [Path(name).name for name in names]
        for kind, names in found.items()
        if kind != "unreadable"
    } == {
        "silent": ["b.tar: 023"],
        "same content": ["b.tar: 020"],
        "same name": ["b.tar: 011"],
    }
    (unreadable,) = found["unreadable"]
    assert "a.tar: 006: " in unreadable and said(tmp_path)["items"] == 25


@pytest.mark.parametrize(
    "words, sentence",
    [
        ("modality=audio data=folder", "data.root=??? has no value"),
        ("modality=audio data=folder data.root=nowhere", "data.root=nowhere is not a folder"),
        (
            "modality=audio data=cifar10 data.root=.",
            "holds items of kind image, and modality=audio takes waveform; choose one of esc50, ",
        ),
        ("modality=audio sample=none", "sample=none must be a whole number"),
        ("modality=audio stps=5", "did you mean steps?"),
    ],
)
def test_wrong_input_is_one_sentence_and_2(
    words: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert doctor(monkeypatch, tmp_path, *words.split()) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "datamodules.doctor", "--help"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0 and "sample=null" in done.stdout


class Lengths(Dataset[np.ndarray]):
    """Nothing but lengths."""

    holds = "waveform"
    lengths = None

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = np.array(lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, index: int) -> None:
        return None

    def describe(self) -> str:
        return "lengths"


@pytest.mark.parametrize("max_tokens", [None, 120])
def test_the_simulated_pass_against_loops(max_tokens: int | None) -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 97).tolist()
    transform = AudioTransform(Lengths(lengths), 1.0, 0)
    data = PretrainDataModule(transform, 4, 16, seed=3, max_tokens=max_tokens)
    pass_ = simulate(data)
    batches = data.plan.window(0)
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    assert pass_.micro_batches == len(batches) and pass_.steps == len(batches) / 4
    assert pass_.padding == pytest.approx(
        1 - sum(lengths) / padded
    ) and pass_.cropped == pytest.approx(0)
    assert pass_.rows[0] == min(map(len, batches)) and pass_.rows[2] == max(map(len, batches))
    steps = len(batches) // 4
    waits, works = 0, 0
    streams = [islice(StepSampler(data.plan, 4, rank, 2), 2 * steps) for rank in range(2)]
    loads = [
        [max(lengths[i] for i in slot.ids) * len(slot.ids) for slot in stream] for stream in streams
    ]
    for step in range(steps):
        first, second = (sum(load[2 * step : 2 * step + 2]) for load in loads)
        waits, works = waits + abs(first - second), works + 2 * max(first, second)
    assert pass_.idle[2] == pytest.approx(waits / works)
    assert pass_.idle[1] == 0 and pass_.idle[8] is None


def test_histogram_counts_everything() -> None:
    lines = histogram(np.random.default_rng(0).exponential(3, 1000))
    assert (
        len(lines) == 16 and sum(int(line.split()[-1].replace(",", "")) for line in lines) == 1000
    )
    assert histogram(np.full(7, 2.5))[0].endswith(" 7") and histogram(np.empty(0)) == []
