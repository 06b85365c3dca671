"""Names with dots, members that are not used, headers of tars and npys that lie, texts."""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.datasets.text_folder import TextFolder
from datamodules.shards import index as indexes
from datamodules.shards import tar as tars
from datamodules.shards.index import build_index, load, save
from tests.shards.test_damage import listed
from tests.shards.tiny_shards import flac, images, npy, png, texts, write


def numbered(stem: str, count: int, labels: bool) -> list[tuple[str, bytes]]:
    rows = []
    for n in range(count):
        rows += [(stem.format(n) + ".png", png(n))]
        rows += [(stem.format(n) + ".cls", b"%d" % (n % 3))] if labels else []
    return rows


@pytest.mark.parametrize("stem", ["img.{}", "ILSVRC2012.val.{:08d}", "a/b.{}.x", "{}"])
@pytest.mark.parametrize("labels", [True, False])
def test_numbered_files_are_samples_of_their_own(tmp_path: Path, stem: str, labels: bool) -> None:
    for s in range(2):
        write(tmp_path / f"{s}.tar", numbered(stem, 16, labels))
    dataset = images(tmp_path, tmp_path, label_key="cls" if labels else None)
    assert sum(len(shard.lengths) for shard in dataset.shards) == 32
    found = [dataset._read(0, i) for i in range(16)]
    for n, pixels in enumerate(found):
        with Image.open(io.BytesIO(png(n))) as image:
            assert np.array_equal(pixels, np.array(image).transpose(2, 0, 1))
    if labels:
        [task] = dataset.labelled()
        assert (len(task.train), len(task.test), task.classes) == (16, 16, 3)


def test_an_index_that_joined_numbered_files_is_made_anew(tmp_path: Path) -> None:
    tar = write(tmp_path / "a.tar", numbered("img.{}", 16, False))
    build_index(tar)
    new = load(tmp_path / "a.idx")
    last = new.entries[-1]
    joined = np.array([(0, int(last["offset"] + last["bytes"]), 1)], indexes.ENTRY)
    save(indexes.Index(joined, new.tar_bytes, new.tar_crc), tmp_path / "a.idx")
    assert len(images(tmp_path, tmp_path)) == 16
    assert len(load(tmp_path / "a.idx").entries) == 16


@pytest.mark.parametrize("names", [("left.png", "right.png"), ("png", "jpg")])
def test_two_images_of_one_sample_are_told(tmp_path: Path, names: tuple[str, str]) -> None:
    rows = [(f"{n}.{name}", png(n)) for n in range(3) for name in names]
    write(tmp_path / "a.tar", rows)
    dataset = images(tmp_path, tmp_path)
    assert len(dataset) == 3 and all(dataset.read(i) is not None for i in range(3))
    told = listed(tmp_path)
    assert "3 members of 3 samples are not used" in told["a.tar: further members"]
    again = images(tmp_path, tmp_path, skipped_path=str(tmp_path / "skipped.jsonl"))
    assert again.read(0) is not None and again.read(1) is not None
    assert any(f"is used, not {names[1]}" in reason for reason in listed(tmp_path).values())


def test_what_is_added_to_an_image_is_not_told(tmp_path: Path) -> None:
    rows = [("0.jpg", png(0)), ("0.seg.png", png(1)), ("0.json", b"{}"), ("0.txt", b"words")]
    assert build_index(write(tmp_path / "a.tar", rows)) == {}


def test_large_members_are_refused_and_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (tars, indexes):
        monkeypatch.setattr(module, "MOST", 100_000)
    rows = [("0.png", png(0)), ("1.png", bytes(200_000)), ("2.png", png(2))]
    tar = write(tmp_path / "a.tar", rows)
    with tar.open("rb") as file:
        members = list(tars.walk(file, tar.stat().st_size))
    assert [len(member.data) for member in members] == [len(png(0)), 0, len(png(2))]
    assert members[1].size == 200_000
    assert build_index(tar) == {"1": "larger than 1 GiB"}
    dataset = images(tmp_path, tmp_path)
    assert len(dataset) == 2 and all(dataset.read(i) is not None for i in range(2))


@pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + b"\x7f" * 11, b"-0000000001\0"])
def test_sizes_in_headers_are_compared_with_the_tar(tmp_path: Path, size: bytes) -> None:
    tar = write(tmp_path / "a.tar", [("0.txt", b"a"), ("1.txt", b"b"), ("2.txt", b"c")])
    data = bytearray(tar.read_bytes())
    data[1024 + 124 : 1024 + 136] = size
    data[1024 + 148 : 1024 + 156] = b" " * 8
    data[1024 + 148 : 1024 + 156] = b"%06o\0 " % sum(data[1024:1536])
    tar.write_bytes(data)
    [(place, reason)] = build_index(tar).items()
    assert place == "after sample 1" and ("breaks off" in reason or "wrong header" in reason)


def test_pax_headers_that_lie(tmp_path: Path) -> None:
    for records in (b"9" * 5000 + b" path=x\n", b"2 " * 20_000 + b"x=\n", b"12 size=\xc2\xb2\n"):
        head = tarfile.TarInfo("pax")
        head.type, head.size = b"x", len(records)
        member = tarfile.TarInfo("0.txt")
        member.size = 1
        blocks = [head.tobuf(), records, member.tobuf(), b"a", bytes(1024)]
        tar = tmp_path / "a.tar"
        tar.write_bytes(b"".join(block + bytes(-len(block) % 512) for block in blocks))
        assert build_index(tar) == {} and len(load(tmp_path / "a.idx").entries) == 1


def test_shapes_in_npys_are_compared_with_their_size(tmp_path: Path) -> None:
    def shaped(shape: str, kind: str = "<u2") -> bytes:
        text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
        return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + bytes(80)

    wrong = ["(10**15,)", "(1000000000000000,)", "(-5,)", "(2, 5)", "()", "(0,)", "(" * 5000]
    rows = [(f"{n}.npy", shaped(shape)) for n, shape in enumerate(wrong)]
    rows += [("7.npy", shaped("(5,)", "<f4")), ("8.npy", npy([1, 2])), ("9.npy", shaped("(40,)"))]
    refused = build_index(write(tmp_path / "a.tar", rows))
    assert {*refused} == {str(n) for n in range(8)}
    dataset = texts(tmp_path, tmp_path, max_bad_share=0.9)
    assert [len(dataset.read(i)) for i in range(len(dataset))] == [2, 40]


def test_texts_of_shards_have_the_lines_of_files(tmp_path: Path) -> None:
    content = "\ufefffirst\r\nsecond \u2028 with a separator\x85\rthird\x0c\n\n".encode()
    bad = [b"nul \0", "lone surrogate \ud800".encode("utf-8", "surrogatepass"), b"gr\xfcn"]
    rows = [(f"{n}.txt", data) for n, data in enumerate([content, *bad, b""])]
    write(tmp_path / "shards" / "a.tar", rows)
    (tmp_path / "folder").mkdir()
    for name, data in rows:
        (tmp_path / "folder" / name).write_bytes(data)
    dataset = texts(tmp_path / "shards", tmp_path, max_bad_share=0.9)
    found = list(dataset.texts())
    folder = TextFolder(str(tmp_path / "folder"), 0.9, None, None, "text", None, None, ())
    assert found == list(folder.texts()) == ["first", "second \u2028 with a separator", "third"]
    assert {*listed(tmp_path)} == {f"a.tar: {n}" for n in (1, 2, 3)}


@pytest.mark.parametrize("label", [b"[1, 2]", b"[" * 100_000, b"7", b'"text"', b"\xff"])
def test_a_label_that_cannot_be_read_is_no_label(tmp_path: Path, label: bytes) -> None:
    rows = [("0.flac", flac(0.2)), ("0.json", b'{"who": 1}'), ("1.png", png(1)), ("1.json", label)]
    for s in range(2):
        write(tmp_path / f"{s}.tar", [*rows, ("2.png", png(2)), ("2.json", b'{"who": "b"}')])
    [task] = images(tmp_path, tmp_path, label_key="json.who", max_bad_share=0.9).labelled()
    assert (len(task.train), len(task.test), task.classes) == (2, 2, 2)
