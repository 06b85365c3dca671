"""Whole runs whose data are bad, or go bad while they train."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from tests.resume import processes
from tests.resume.processes import COMMON, RUNS

AUDIO = [a for a in RUNS["audio"] if not a.startswith("data.")]
VISION = [a for a in RUNS["vision"] if not a.startswith("data.")]
FAST = [a for a in COMMON if not a.startswith(("steps", "checkpoint"))]


def sounds(folder: Path, count: int, cut: int) -> None:
    """FLAC files of which the first ``cut`` are cut in half: their headers are right."""
    folder.mkdir(parents=True)
    for n in range(count):
        wave = 0.1 * np.random.default_rng(n).standard_normal(8000)
        soundfile.write(file := folder / f"{n:02d}.flac", wave, 16_000)
        if n < cut:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def pictures(folder: Path, count: int) -> None:
    """PNG files in two folders."""
    for n in range(count):
        pixels = np.random.default_rng(n).integers(0, 256, (20, 20, 3)).astype(np.uint8)
        file = folder / f"{n % 2}" / f"{n:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)


def said(cwd: Path) -> str:
    return (cwd / "out.txt").read_text()


@pytest.mark.parametrize(
    "cut, workers, joined", [(16, 0, False), (14, 2, False), (14, 1, True), (1, 1, False)]
)
def test_files_that_cannot_be_decoded(tmp_path: Path, cut: int, workers: int, joined: bool) -> None:
    sounds(tmp_path / "data", 16, cut)
    argv = [*AUDIO, "data=folder", "data.root=data", *FAST, "steps=8", f"workers={workers}"]
    argv += ["checkpoint.every_steps=1", *(["transform.join=true"] if joined else [])]
    codes = processes.ends(processes.start(tmp_path, argv))
    assert codes == [2 if cut > 1 else 0], said(tmp_path)[-3000:]
    if cut > 1:
        error = said(tmp_path).splitlines()[-1]
        assert error.startswith("error: data.max_bad_share=0.1 ends the run at step ")
        assert "flac (cannot be decoded" in error and "skipped.jsonl lists all" in error


def test_labelled_files_that_cannot_be_decoded(tmp_path: Path) -> None:
    sounds(tmp_path / "data", 20, 10)
    rows = [f"{n:02d}.flac\t{n % 2}\t{'ab'[n % 4 == 0]}" for n in range(20)]
    (tmp_path / "labels.tsv").write_text("\n".join(["file\tclass\tpart", *rows]) + "\n")
    argv = [a for a in AUDIO if not a.startswith(("masking", "objective"))]
    argv += ["task=finetune", "data=folder", "data.root=data", "data.labels=labels.tsv"]
    argv += ["data.label_column=class", "data.split_column=part", "data.test_values=[b]"]
    keep = [a for a in FAST if not a.startswith(("objective", "ema", "probe"))]
    codes = processes.ends(processes.start(tmp_path, [*argv, *keep, "steps=8"]))
    assert codes == [2], said(tmp_path)[-3000:]
    error = said(tmp_path).splitlines()[-1]
    assert "does not allow" in error and "unusable of 15 items" in error


MORE = [pytest.param(*p, marks=pytest.mark.slow) for p in ((0, 1), (1, 1), (3, 1), (1, 2))]


@pytest.mark.parametrize("workers, world", [(2, 1), *MORE])
def test_a_folder_that_is_moved_away_and_back(tmp_path: Path, workers: int, world: int) -> None:
    """It stops at once, on all ranks, with nothing of it saved; with the folder back, the same
    command gives the bits of a run that nothing happened to."""
    argv = [*VISION, "data=folder", "data.root=data", *FAST, "steps=24", f"workers={workers}"]
    argv += ["checkpoint.every_steps=1", "checkpoint.keep_last=2"]
    pictures(tmp_path / "whole" / "data", 30)
    processes.finish(tmp_path / "whole", argv, world)
    cwd = tmp_path / "moved"
    shutil.copytree(tmp_path / "whole" / "data", cwd / "data")
    ranks = processes.start(cwd, argv, world)
    assert processes.waits(lambda: processes.trained(cwd) >= 7, ranks)
    (cwd / "data").rename(cwd / "elsewhere")
    codes = processes.ends(ranks)
    assert codes == [2] * world, said(cwd)[-3000:]
    wanted = (
        "error: data.root=data cannot be read any more: the folder data is not there; bring it "
    )
    assert wanted in said(cwd) and "skipped data" not in said(cwd)
    assert processes.trained(cwd) <= 7 + 2 + 2 * max(1, workers) * 2
    (cwd / "elsewhere").rename(cwd / "data")
    processes.finish(cwd, argv, world)
    ours, theirs = processes.outcome(cwd), processes.outcome(tmp_path / "whole")
    assert list(processes.differences(ours, theirs)) == []
