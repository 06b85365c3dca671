"""Folders of made-up sound, images and text, a way to run the command, and independent readers of
what it wrote."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from webdataset import tariterators

from datamodules.prepare.__main__ import main


def prepare(command: str, source: Path, output: Path, *words: str) -> int:
    """Run in this process; the exit code."""
    return main([command, f"input={source}", f"output={output}", "processes=1", *words])


def sounds(root: Path, count: int = 12, seconds: float = 0.3) -> Path:
    """wav at 8 kHz, stereo flac at 22.05 kHz, ogg at 16 kHz in turn, in sub-folders."""
    for n in range(count):
        ending, rate, channels = (("wav", 8000, 1), ("flac", 22_050, 2), ("ogg", 16_000, 1))[n % 3]
        wave = 0.4 * np.sin(
            2 * np.pi * (200 + 30 * n) * np.arange(round(rate * (seconds + 0.02 * n))) / rate
        )
        file = root / f"speaker{n % 2}" / f"take.{n}.{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(str(file), np.stack([wave] * channels, 1), rate)
    return root


def images(root: Path, classes: int = 2, each: int = 6) -> Path:
    """jpg, png and webp of 20 x 14 pixels in class folders."""
    rng = np.random.default_rng(0)
    for n in range(classes * each):
        file = root / f"class{n % classes}" / f"{n}.{('jpg', 'png', 'webp')[n % 3]}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (14, 20, 3)).astype(np.uint8)).save(file)
    return root


def read(output: Path) -> list[dict[str, Any]]:
    """All samples in the order of the shards, by webdataset's parser (its openers leave files
    open)."""
    samples: list[dict[str, Any]] = []
    for tar in sorted(output.glob("*.tar")):
        with tar.open("rb") as file:
            members = tariterators.tar_file_expander([{"url": tar.name, "stream": file}])
            samples += tariterators.group_by_keys(members)
    return samples


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def manifest(output: Path) -> dict[str, Any]:
    return json.loads((output / "manifest.json").read_text("utf-8"))


def skipped(output: Path) -> dict[str, str]:
    return {
        row["file"]: row["reason"]
        for row in map(json.loads, (output / "skipped.jsonl").read_text().splitlines())
    }


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed since, on one line."""
    out, err = capsys.readouterr()
    return " ".join((out + err).split())


def sound(data: bytes) -> tuple[np.ndarray, int]:
    """(S, channels) and the rate."""
    return soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)


def command(*words: str) -> list[str]:
    """The command as a process of its own."""
    return [sys.executable, "-m", "datamodules.prepare", *words]
