"""Folders of real files: every format, every wrong input, what is listed and when the run stops."""

from __future__ import annotations

import errno
import json
import os
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from d2v_pretrain.errors import ConfigError
from datamodules.datasets.audio_folder import AudioFolder
from datamodules.datasets.image_folder import ImageFolder, decode
from datamodules.datasets.labels import LabelRow, from_folders, hashed
from datamodules.datasets.sound import ENDINGS
from datamodules.datasets.text_folder import TextFolder
from datamodules.module import PretrainDataModule
from datamodules.transforms.audio import AudioTransform


def tone(
    path: Path, rate: int = 16_000, channels: int = 1, seconds: float = 0.5, hertz: float = 440
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)
    kind = {".opus": {"format": "OGG", "subtype": "OPUS"}, ".oga": {"format": "OGG"}}
    kind |= {ending: {"format": "AIFF"} for ending in (".aif", ".aifc")}
    soundfile.write(str(path), np.stack([wave] * channels, 1), rate, **kind.get(path.suffix, {}))
    return path


def picture(
    path: Path, mode: str = "RGB", size: tuple[int, int] = (20, 16), **save: object
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    pixels = rng.integers(0, 256, (size[1], size[0], 4)).astype(np.uint8)
    Image.fromarray(pixels, "RGBA").convert(mode).save(path, **save)  # type: ignore[arg-type]
    return path


def audio(root: Path, **changes: object) -> AudioFolder:
    settings = {
        "min_seconds": 0.2,
        "max_seconds": 40,
        "max_bad_share": 0.1,
        "skipped_path": None,
        "labels": None,
    }
    table = {"label_column": None, "split_column": None, "test_values": ()}
    return AudioFolder(str(root), **{**settings, **table, **changes})  # type: ignore[arg-type]


def images(root: Path, **changes: object) -> ImageFolder:
    return ImageFolder(
        str(root), **{"min_side": 8, "max_bad_share": 0.1, "skipped_path": None, **changes}
    )  # type: ignore[arg-type]


def text(root: Path, **changes: object) -> TextFolder:
    table = {
        "labels": None,
        "text_column": "text",
        "label_column": None,
        "split_column": None,
        "test_values": (),
    }
    return TextFolder(str(root), **{"max_bad_share": 0.1, "skipped_path": None, **table, **changes})  # type: ignore[arg-type]


def listed(path: Path) -> dict[str, str]:
    return {
        Path(r["file"]).name: r["reason"] for r in map(json.loads, path.read_text().splitlines())
    }


@pytest.mark.parametrize("ending", [*(ending[1:] for ending in ENDINGS), "WAV"])
@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16_000, 2), (44_100, 2)])
def test_any_format_rate_and_channels_become_mono_at_16_khz(
    tmp_path: Path, ending: str, rate: int, channels: int
) -> None:
    if ending == "opus" and rate == 44_100:
        rate = 48_000  # Opus has no other high rate
    tone(tmp_path / "some" / "where" / f"a.{ending}", rate, channels, seconds=1)
    wave = audio(tmp_path).read(0)
    assert wave.dtype == np.float32 and wave.ndim == 1 and abs(len(wave) - 16_000) < 2000
    spectrum = np.abs(np.fft.rfft(wave[2000:14_000]))
    assert spectrum.argmax() * 16_000 / 12_000 == pytest.approx(440, abs=2)
    assert np.abs(wave[2000:14_000]).max() == pytest.approx(0.5, rel=0.1)


def test_long_files_are_cut_into_equal_pieces_that_make_up_the_whole(tmp_path: Path) -> None:
    tone(tmp_path / "long.wav", rate=8000, seconds=2.5)
    tone(tmp_path / "short.wav", seconds=1)
    dataset = audio(tmp_path, max_seconds=1)
    assert dataset.lengths.tolist() == [
        13_332,
        13_334,
        13_334,
        16_000,
    ]  # 6,666 + 6,667 + 6,667 frames at 8 kHz
    assert [len(dataset.read(i)) for i in range(4)] == dataset.lengths.tolist()


def test_bad_audio_is_skipped_counted_and_listed(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for i in range(20):
        tone(root / f"{i}.wav")
    (root / "empty.wav").touch()
    (root / "noise.flac").write_bytes(b"this is not audio" * 50)
    (root / "readme.md").write_text("hello")
    (root / ".hidden.wav").write_text("hello")
    tone(root / "blip.wav", seconds=0.1)
    picture(root / "picture.png").rename(root / "picture.mp3")
    dataset = audio(root, max_bad_share=0.2, skipped_path=str(tmp_path / "run" / "skipped.jsonl"))
    assert len(dataset) == 20
    reasons = listed(tmp_path / "run" / "skipped.jsonl")
    assert set(reasons) == {"empty.wav", "noise.flac", "blip.wav", "picture.mp3", "readme.md"}
    assert reasons["empty.wav"] == "empty" and reasons["blip.wav"].startswith("too short: 0.100 s")
    assert (
        "not readable as audio" in reasons["noise.flac"]
        and "does not end in" in reasons["readme.md"]
    )


def test_too_much_bad_stops_with_the_list(tmp_path: Path) -> None:
    for i in range(7):
        tone(tmp_path / f"{i}.wav")
        (tmp_path / f"bad{i}.wav").write_text("x" if i < 2 else "")
    with pytest.raises(
        ConfigError,
        match=r"7 unusable of 14 files, more than max_bad_share=0.1 .*bad0.wav.*bad2.wav \(empty",
    ):
        len(audio(tmp_path))


def test_nothing_usable_says_what_was_looked_for(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.jpg")
    with pytest.raises(
        ConfigError, match=r"no usable file: looked for .wav, .flac, .ogg, .mp3, .* it holds 3 .jpg"
    ):
        len(audio(tmp_path))
    with pytest.raises(ConfigError, match=r"looked for .txt in it and below; it holds 3 .jpg"):
        text(tmp_path).files  # noqa: B018
    with pytest.raises(ConfigError, match="it holds no file at all"):
        len(images(tmp_path / "0.jpg").files) if (tmp_path / "new").mkdir() else len(
            images(tmp_path / "new")
        )
    with pytest.raises(ConfigError, match="nowhere is not a folder; give the folder"):
        len(images(tmp_path / "nowhere"))


def test_links_in_a_circle_end_and_a_second_way_to_files_does_not_hide_them(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for name in ("a/0.wav", "b/1.wav"):
        tone(root / name)
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "me").symlink_to(root / "a")
    (root / "b" / "other").symlink_to(root / "a")
    dataset = audio(root)
    assert [dataset.name(i) for i in range(len(dataset))] == [
        f"{root}/{x}.wav" for x in ("a/0", "b/1", "b/other/0")
    ]


def test_a_folder_that_cannot_be_opened_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, log = tmp_path / "data", tmp_path / "run" / "skipped.jsonl"
    for i in range(10):
        tone(root / f"open/{i}.wav")
    tone(root / "closed/0.wav")
    there = os.scandir  # root may open any folder, so that modes are no test

    def scandir(folder: str) -> Any:
        if folder.endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return there(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert len(audio(root, skipped_path=str(log))) == 10
    assert listed(log) == {"closed": "cannot be opened (Permission denied)"}
    assert f"1 of 10 files cannot be used: {log} says why" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_file_that_fails_in_training_weighs_nothing_and_is_listed_once(tmp_path: Path) -> None:
    root, log = tmp_path / "data", tmp_path / "skipped.jsonl"
    for i in range(4):
        tone(root / f"{i}.wav")
    dataset = audio(root, skipped_path=str(log))
    module = PretrainDataModule(
        AudioTransform(dataset, 0.3, 0), micro_batch=4, global_batch=4, seed=0
    )
    batches = iter(module.train_dataloader())
    assert next(batches).weight is None
    (root / "2.wav").write_bytes(b"gone")
    again = list(islice(batches, 3))
    assert all(b.weight[b.ids == 2].item() == 0 and b.weight.sum() == 3 for b in again)
    assert list(listed(log)) == ["2.wav"]
    tone(root / "2.wav")
    assert len(audio(root, skipped_path=str(log))) == 4 and list(listed(log)) == ["2.wav"], (
        "a resumed run keeps it"
    )


def test_labels_hold_the_test_speaker_out(tmp_path: Path) -> None:
    rows = ["file\tword\tspeaker"]
    for speaker in "abc":
        for i in range(6):
            tone(tmp_path / speaker / f"{speaker}{i}.wav", hertz=200 + 100 * i)
            rows.append(f"{speaker}{i}.wav\t{i % 2}\t{speaker}")
    (tmp_path / "labels.tsv").write_text("\n".join([*rows, "missing.wav\t0\ta"]))
    table = {
        "labels": str(tmp_path / "labels.tsv"),
        "label_column": "word",
        "split_column": "speaker",
    }
    dataset = audio(tmp_path, **table, test_values=["c"])
    assert len(dataset) == 12 and not any("c" in Path(part.file).name for part in dataset.stretches)
    task = AudioTransform(dataset, 1, 0).probe_tasks()[0]
    assert (task.name, task.classes, len(task.train.split), len(task.test.split)) == (
        "word",
        2,
        12,
        6,
    )
    assert sorted(next(iter(task.test)).labels.tolist()) == [0] * 3 + [1] * 3
    for change, message in [
        ({"label_column": "digit"}, "must have a column 'digit'; it has file, word, speaker"),
        ({"label_column": None}, "label_column=None must name a column"),
        (
            {"test_values": ["d"]},
            "must leave some rows to train on and some to test, by column 'speaker'",
        ),
        ({"labels": str(tmp_path / "no.tsv")}, "cannot be read"),
    ]:
        with pytest.raises(ConfigError, match=message):
            len(audio(tmp_path, **{**table, "test_values": ["c"], **change}))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "I;16"])
def test_images_of_every_mode_become_colour(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        Image.fromarray(np.full((16, 20), 200 * 256 + 7, np.uint16)).save(path)
    else:
        picture(path, mode)
    pixels = decode(str(path))
    assert pixels.shape == (3, 16, 20) and pixels.dtype == np.uint8
    if mode == "I;16":
        assert (pixels == 200).all()


def test_transparency_is_white_and_webp_is_read(tmp_path: Path) -> None:
    Image.new("RGBA", (9, 9), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert (decode(str(tmp_path / "clear.png")) == 255).all()
    assert decode(str(picture(tmp_path / "a.webp"))).shape == (3, 16, 20)


def test_bad_images_are_listed_at_the_start_or_when_met(tmp_path: Path) -> None:
    root, log = tmp_path / "data", tmp_path / "skipped.jsonl"
    for i in range(20):
        picture(root / f"{i:02}.jpg")
    cut = root / "cut.png"
    cut.write_bytes(picture(root / "00.png", size=(200, 200)).read_bytes()[:2000])
    picture(root / "tiny.png", size=(4, 4))
    (root / "text.jpeg").write_text("no image")
    dataset = images(root, skipped_path=str(log))
    assert len(dataset) == 22 and set(listed(log)) == {"tiny.png", "text.jpeg"}
    unread = [i for i in range(22) if dataset.read(i) is None]
    assert [Path(dataset.kept[i]).name for i in unread] == ["cut.png"] and "cut.png" in listed(log)


def test_class_folders_give_a_probe_and_hold_its_test_out(tmp_path: Path) -> None:
    for part, count in (("train", 8), ("test", 3)):
        for name in ("cat", "dog"):
            for i in range(count):
                picture(tmp_path / part / name / f"{i}.png")
    dataset = images(tmp_path)
    assert len(dataset) == 16 and all("train" in file for file in dataset.kept)
    task = dataset.labelled()[0]
    assert (task.classes, len(task.train), len(task.test)) == (2, 16, 6)
    whole = images(tmp_path / "train")
    assert (
        len(whole)
        == sum(not hashed(f"{name}/{i}.png") for name in ("cat", "dog") for i in range(8))
        < 16
    )
    assert images(tmp_path / "train" / "cat").labelled() == []


def test_folders_that_are_no_classes() -> None:
    assert from_folders(["a/1.jpg", "2.jpg"]) == [] and from_folders(["a/b/1.jpg"] * 20) == []
    assert from_folders([f"a/{i}.jpg" for i in range(50)]) == [], "one class"
    assert from_folders(["b/0.jpg", *(f"a/{i}.jpg" for i in range(50))]) == [], (
        "too few to learn from"
    )
    assert LabelRow("test/a/0.jpg", "a", True) in from_folders(
        [f"{part}/{name}/{i}.jpg" for part in ("train", "test") for name in "ab" for i in range(9)]
    )


def test_text_files_are_read_line_by_line_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.txt").write_text("third\r\n\r\n  fourth  ", encoding="utf-8")
    (tmp_path / "a.TXT").write_text("\ufefffirst\n\nsecond, ä ✓\n", encoding="utf-8")
    assert list(text(tmp_path).texts()) == ["first", "second, ä ✓", "third", "fourth"]
    assert list(text(tmp_path / "a.TXT").texts()) == ["first", "second, ä ✓"]


def test_bad_text_is_skipped_and_listed(tmp_path: Path) -> None:
    root, log = tmp_path / "data", tmp_path / "skipped.jsonl"
    root.mkdir()
    (root / "good.txt").write_text("good")
    (root / "latin.txt").write_bytes("grün".encode("latin-1"))
    (root / "blank.txt").write_text(" \n\n")
    (root / "binary.txt").write_bytes(b"a\0b")
    dataset = text(root, max_bad_share=0.8, skipped_path=str(log))
    assert list(dataset.texts()) == ["good"]
    reasons = listed(log)
    assert reasons == {
        "latin.txt": reasons["latin.txt"],
        "blank.txt": "empty",
        "binary.txt": "binary, not text",
    }
    assert "not UTF-8" in reasons["latin.txt"]


def test_labelled_texts_give_a_probe(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text to pretrain on")
    rows = [f"{i % 2},sentence {i},{'test' if i % 4 == 3 else 'train'}" for i in range(40)]
    (tmp_path / "labels.csv").write_text("\n".join(["mood,text,split", *rows]))
    table = {"labels": str(tmp_path / "labels.csv"), "label_column": "mood"}
    task = text(tmp_path, **table, split_column="split", test_values=["test"]).labelled()[0]
    assert (len(task.train), len(task.test), task.classes) == (30, 10, 2)
    texts = [task.test.read(i) for i in range(10)]
    assert (
        all(int(t.split()[1]) % 4 == 3 for t in texts)
        and torch.tensor(task.test.labels).eq(1).all()
    )
    hashed_task = text(tmp_path, **table).labelled()[0]
    assert len(hashed_task.test) == sum(hashed(f"sentence {i}") for i in range(40)) > 0
