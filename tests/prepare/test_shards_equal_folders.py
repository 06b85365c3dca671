"""What training reads from the shards is what it reads from the folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from datamodules.datasets.audio_folder import AudioFolder
from datamodules.datasets.image_folder import ImageFolder
from datamodules.datasets.text_folder import TextFolder
from datamodules.shards.audio import AudioShards
from datamodules.shards.image import ImageShards
from datamodules.shards.text import TextShards
from datamodules.transforms.text import TextTransform, TokenBlocks
from tests.prepare.commands import images, prepare, sounds
from tests.prepare.test_blocks import fairseq

NO_LABELS = {"labels": None, "label_column": None, "split_column": None, "test_values": ()}
COMMON = {"max_bad_share": 0.1, "skipped_path": None}


def shards(out: Path) -> dict[str, object]:
    cache = {
        "cache_folder": str(out.parent / "cache"),
        "cache_gb": 1.0,
        "label_key": None,
        "test_shards": 1,
    }
    return {"root": str(out), **COMMON, **cache}


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    """The same arrays, in any order."""
    rows = [sorted((array.shape, array.tobytes()) for array in arrays) for arrays in (one, other)]
    return len(one) > 0 and rows[0] == rows[1]


def test_sound(tmp_path: Path) -> None:
    root = sounds(tmp_path / "in")
    assert prepare("audio", root, tmp_path / "out", "shard_samples=5") == 0
    limits = {"min_seconds": 0.2, "max_seconds": 35.0}
    folder, made = (
        AudioFolder(str(root), **limits, **COMMON, **NO_LABELS),
        AudioShards(**limits, **shards(tmp_path / "out")),
    )
    assert same(
        [folder.read(i) for i in range(len(folder))], [made.read(i) for i in range(len(made))]
    )
    assert sorted(folder.lengths) == sorted(made.lengths)


def test_images(tmp_path: Path) -> None:
    root = images(tmp_path / "in", 1)
    assert prepare("vision", root, tmp_path / "out", "shard_samples=5") == 0
    folder, made = ImageFolder(str(root), 8, **COMMON), ImageShards(**shards(tmp_path / "out"))
    assert same(
        [folder.read(i) for i in range(len(folder))], [made.read(i) for i in range(len(made))]
    )


def test_text(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text("".join(f"Line {i}, and some more.\n\n" for i in range(50)))
    words = ("vocab_size=300", "block=16", "blank_lines=drop", "order=sorted", "shard_samples=7")
    assert prepare("text", tmp_path / "in", tmp_path / "out", *words) == 0
    made = TokenBlocks(TextShards(300, **shards(tmp_path / "out")), 16, 300, None)
    dataset = TextFolder(str(tmp_path / "in"), **COMMON, text_column="text", **NO_LABELS)
    blocks = TextTransform(dataset, 16, 300, str(tmp_path / "out/tokenizer"), None)
    assert len(made) == len(blocks) + 1, "the last block, which is not full, is kept as in fairseq"
    assert all(made.read(i, 0).equal(blocks.read(i, 0)) for i in range(len(blocks)))
    assert made.vocabulary.size == 300


@pytest.mark.parametrize("mode", ["complete", "complete_doc"])
def test_text_in_whole_lines(mode: str, tmp_path: Path) -> None:
    """The blocks of a folder are those of its shards, which are fairseq's: whole lines, documents
    apart at empty lines and ends of files, and a line that is too long in pieces."""
    (tmp_path / "in").mkdir()
    for name in "abc":
        lines = [f"{name} {i}, {'and more ' * (i % 7)}" + "\n" * (1 + i % 3) for i in range(30)]
        (tmp_path / f"in/{name}.txt").write_text("".join([*lines, "long " * 40]))
    words = ("vocab_size=300", "block=24", "order=sorted", "shard_samples=7", f"break_mode={mode}")
    words += ("blank_lines=keep" if mode == "complete_doc" else "blank_lines=drop",)
    assert prepare("text", tmp_path / "in", tmp_path / "out", *words) == 0
    made = TokenBlocks(TextShards(300, **shards(tmp_path / "out")), 24, 300, None, None, mode)
    dataset = TextFolder(str(tmp_path / "in"), **COMMON, text_column="text", **NO_LABELS)
    blocks = TextTransform(dataset, 24, 300, str(tmp_path / "out/tokenizer"), None, mode)
    found = [block.tolist() for block in map(partial(blocks.read, epoch=0), range(len(blocks)))]
    assert sorted(found) == sorted(made.read(i, 0).tolist() for i in range(len(made)))
    assert blocks.lengths.tolist() == [len(block) for block in found]
    assert max(map(len, found)) == 24 and min(map(len, found)) < 24
    lines = dataset.lines() if mode == "complete_doc" else dataset.texts()
    sizes = [len(ids) + 1 for ids in blocks.vocabulary.encode(lines)]
    room = [(b - a) for a, b in fairseq(sizes, mode, 23)]
    assert sum(room) == sum(len(block) - 1 for block in found)
    assert len([size for size in room if size <= 23]) <= len(found)
