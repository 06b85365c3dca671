"""verify finds every planted fault and nothing in whole shards; foreign tar files too."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datamodules.prepare.__main__ import main
from datamodules.shards.index import load
from tests.prepare.commands import files, images, manifest, prepare, said, sounds


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Three shards of sound."""
    assert prepare("audio", sounds(tmp_path / "in"), tmp_path / "out", "shard_samples=4") == 0
    return tmp_path / "out"


def verify(folder: Path) -> int:
    return main(["verify", f"input={folder}", "processes=1"])


def member(tar: Path, extension: str) -> tuple[str, int, int]:
    """Name, place and size of the first member of a kind."""
    with tarfile.open(tar) as members:
        one = next(m for m in members if m.name.endswith(extension))
    return one.name, one.offset_data, one.size


def overwrite(file: Path, place: int, data: bytes) -> None:
    with file.open("r+b") as bytes_:
        bytes_.seek(place)
        bytes_.write(data)


def test_whole_shards_have_no_fault(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "txt").mkdir()
    (tmp_path / "txt/a.txt").write_text("A line of text.\n" * 30)
    assert prepare("text", tmp_path / "txt", tmp_path / "text", "vocab_size=280", "block=16") == 0
    assert prepare("vision", images(tmp_path / "png"), tmp_path / "vision") == 0
    for folder in (out, tmp_path / "text", tmp_path / "vision"):
        assert verify(folder) == 0 and " 0 faults" in said(capsys)


def flip(out: Path) -> str:
    """One bit of a sound, which may well decode all the same."""
    tar = out / "shard-000001.tar"
    _, place, _ = member(tar, ".wav")
    overwrite(tar, place + 100, bytes([tar.read_bytes()[place + 100] ^ 1]))
    return "shard-000001.tar: its bytes are not those that were written"


def garble(out: Path) -> str:
    """The head of a FLAC."""
    tar = out / "shard-000001.tar"
    name, place, _ = member(tar, ".flac")
    overwrite(tar, place, b"no head")
    return f"shard-000001.tar: {name}: cannot be decoded"


def truncate(out: Path) -> str:
    tar = out / "shard-000002.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    return "shard-000002.tar: cannot be read to its end"


def remove(out: Path) -> str:
    (out / "shard-000000.tar").unlink()
    return "shard-000000.tar: missing"


def add(out: Path) -> str:
    (out / "shard-000009.tar").write_bytes((out / "shard-000000.tar").read_bytes())
    return "shard-000009.tar: not in the manifest"


def miscount(out: Path) -> str:
    made = manifest(out)
    made["samples"] += 1
    (out / "manifest.json").write_text(json.dumps(made))
    return "manifest.json: samples is 13, and the shards have 12"


def unindex(out: Path) -> str:
    (out / "shard-000001.idx").unlink()
    return "shard-000001.idx: cannot be read"


def exchange(out: Path) -> str:
    """The index of another shard: whole, but not of this one."""
    (out / "shard-000001.idx").write_bytes((out / "shard-000002.idx").read_bytes())
    return "shard-000001.idx: is not that of its tar"


@pytest.mark.parametrize(
    "plant", [flip, garble, truncate, remove, add, miscount, unindex, exchange]
)
def test_a_planted_fault_is_named(
    plant: Callable[[Path], str], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fault = plant(out)
    assert verify(out) == 1
    told = said(capsys)
    assert fault in told
    named = {
        name
        for name in ("shard-000000", "shard-000001", "shard-000002", "shard-000009")
        if name in told
    }
    assert len(named) <= 1, "a fault of one shard is not told of another"


def test_index_mends_indexes(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(out)
    unindex(out)
    (out / "shard-000002.idx").write_bytes(b"D2V")
    assert main(
        ["index", f"input={out}", "processes=1"]
    ) == 0 and "3 indexes written, 0 faults" in said(capsys)
    assert files(out) == before and verify(out) == 0


def test_index_tells_what_a_reader_cannot_use(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truncate(out)
    assert main(["index", f"input={out / 'shard-000002.tar'}", "processes=1"]) == 1
    assert "shard-000002.tar: after sample" in said(capsys)


def test_lengths_in_the_index_are_those_of_the_manifest(out: Path) -> None:
    for shard in manifest(out)["shards"]:
        lengths = load(out / shard["name"].replace(".tar", ".idx")).entries["length"]
        assert (len(lengths), lengths.sum()) == (shard["samples"], shard["length"])


def test_foreign_tars_are_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = io.BytesIO()
    np.save(ids, np.array([["no", "ids"]]))
    picture = next(images(tmp_path / "in").rglob("*.png")).read_bytes()
    members = {
        "a/1.png": picture,
        "a/1.cls": b"7",
        "a/2.png": picture[:150],
        "a/2.cls": b"cat",
        "b.npy": ids.getvalue(),
        "b.xyz": b"anything",
        "c.json": b"{",
    }
    with tarfile.open(tmp_path / "foreign.tar", "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert verify(tmp_path / "foreign.tar") == 1
    told = said(capsys)
    for name in members:
        assert (f"foreign.tar: {name}:" in told) == (
            name in ("a/2.png", "a/2.cls", "b.npy", "c.json")
        )
    assert "4 faults" in told
