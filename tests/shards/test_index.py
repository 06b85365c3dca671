"""The walk and the index against webdataset's own parser and Python's tarfile, over every tar
dialect."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
import webdataset

from datamodules.shards.index import build_index, is_whole, load
from datamodules.shards.tar import Damaged, Sample, parts, walk, write_tar
from tests.shards.tiny_shards import flac, npy, write


def theirs(tar: Path) -> list[dict[str, bytes]]:
    """Samples as webdataset reads them, in order."""
    files = webdataset.tariterators.tar_file_expander(
        [{"url": str(tar), "stream": io.BytesIO(tar.read_bytes())}]
    )
    return [
        {k: v for k, v in s.items() if k != "__url__"}
        for s in webdataset.tariterators.group_by_keys(files)
    ]


def ours(tar: Path) -> list[dict[str, bytes]]:
    """The same through the index: each sample from its own span of bytes."""
    content, samples = tar.read_bytes(), []
    for entry in load(tar.with_suffix(".idx")).entries:
        span = content[entry["offset"] : entry["offset"] + entry["bytes"]]
        named = [(parts(m.name), m.data) for m in walk(io.BytesIO(span), len(span))]
        known = [(n, data) for n, data in named if n]
        samples.append({"__key__": known[0][0][0], **{n[1]: data for n, data in known}})
    return samples


LONG = "folder/" * 30 + "é" * 40
ODD = [
    ("a/0001.JPG", b"x" * 700),
    ("a/0001.cls", b"3"),
    ("a/0001.seg.png", b""),
    ("__meta__/about.txt", b"no"),
    ("b/0001.jpg", b"y" * 512),
    ("without", b"an extension"),
    ("b/0001.cls", b"4"),
    (".hidden", b"?"),
    (f"{LONG}.jpg", b"z" * 1025),
    (f"{LONG}.txt", b"long"),
    ("a/0001.jpg", b"again"),
    ("t.npy", npy([5, 6, 7])),
]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_same_samples_as_webdataset(tmp_path: Path, form: int) -> None:
    tar = write(tmp_path / "a.tar", ODD, form)
    assert build_index(tar) == {}
    assert ours(tar) == theirs(tar) and len(theirs(tar)) == 5
    index = load(tmp_path / "a.idx")
    assert index.entries["length"].tolist() == [1, 1, 1, 1, 3]
    assert index.tar_bytes == tar.stat().st_size and is_whole(str(tar))


def test_links_folders_prefixes_and_numbers_in_binary(tmp_path: Path) -> None:
    """What tarfile makes of them: ustar's divided name, a link with a size, a global header,
    base-256 numbers."""
    tar = tmp_path / "a.tar"
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as out:
        for name, kind in (
            ("d", tarfile.DIRTYPE),
            ("0.txt", tarfile.SYMTYPE),
            ("p" * 90 + "/" + "q" * 90 + ".txt", b"0"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, 3 if kind == b"0" else 0
            out.addfile(member, io.BytesIO(b"abc") if kind == b"0" else None)
    first = tar.read_bytes().rstrip(b"\0")
    body = first + bytes(-len(first) % 512)
    binary = bytearray(tarfile.TarInfo("1.txt").tobuf(tarfile.GNU_FORMAT))
    binary[124:136] = b"\x80" + (5).to_bytes(11, "big")
    binary[148:156] = b" " * 8
    binary[148:156] = b"%06o\0 " % sum(binary)
    globally = tarfile.TarInfo("").create_pax_global_header({"comment": "hello"})
    tar.write_bytes(body + globally + bytes(binary) + b"hello" + bytes(507) + bytes(1024))
    with tarfile.open(tar) as known:
        expected = [(m.name, known.extractfile(m).read()) for m in known if m.isreg()]
    with tar.open("rb") as file:
        assert [(m.name, m.data) for m in walk(file, tar.stat().st_size)] == expected
    assert len(expected) == 2


def test_lengths_are_at_16_khz_and_what_cannot_be_used_has_none(tmp_path: Path) -> None:
    members = [
        ("0.flac", flac(0.5)),
        ("0.json", b"{}"),
        ("1.flac", flac(0.5, 44_100)),
        ("2.flac", b"no sound"),
        ("../3.flac", flac(0.1)),
        ("/4.flac", flac(0.1)),
        ("a/../5.txt", b"x"),
        ("6.txt", b"x"),
        ("6.txt", b"y"),
        ("7.npy", b"no array"),
        ("8.flac", flac(0.25)),
    ]
    refused = build_index(write(tmp_path / "a.tar", members))
    assert load(tmp_path / "a.idx").entries["length"].tolist() == [
        8000,
        8000,
        0,
        0,
        0,
        0,
        0,
        0,
        4000,
    ]
    assert set(refused) == {"2", "../3", "/4", "a/../5", "6", "7"}
    assert "points out of the folder" in refused["../3"] and "cannot be read" in refused["2"]


def test_a_tar_that_breaks_off_has_an_index_of_what_is_there(tmp_path: Path) -> None:
    tar = write(tmp_path / "a.tar", [(f"{i}.txt", bytes(1000)) for i in range(5)])
    tar.write_bytes(tar.read_bytes()[: 3 * 1536 + 700])
    assert "breaks off" in build_index(tar)["after sample 3"] and not is_whole(str(tar))
    assert len(load(tmp_path / "a.idx").entries) == 3


def test_every_flipped_bit_and_every_cut_of_an_index_is_found(tmp_path: Path) -> None:
    build_index(write(tmp_path / "a.tar", [("0.txt", b"a"), ("1.txt", b"b")]))
    path, good = tmp_path / "a.idx", (tmp_path / "a.idx").read_bytes()
    for place in range(len(good)):
        for bad in (good[:place], good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :]):
            path.write_bytes(bad)
            with pytest.raises(Damaged):
                load(path)


def test_the_same_tar_has_the_same_index(tmp_path: Path) -> None:
    tar = write(tmp_path / "a.tar", ODD, tarfile.PAX_FORMAT)
    build_index(tar), build_index(tar, tmp_path / "b.idx")
    assert (tmp_path / "a.idx").read_bytes() == (tmp_path / "b.idx").read_bytes()


def test_tars_are_written_as_tarfile_writes_them_without_times_and_owners(tmp_path: Path) -> None:
    """Byte for byte: finished shards keep their checksums with any version of webdataset."""
    samples = [
        Sample(f"{n:09d}", {"json": b"{}", "flac": bytes(range(256)) * n, "cls": b"%d" % n}, n)
        for n in range(5)
    ]
    written = write_tar(tmp_path / "ours.tar", samples)
    with tarfile.open(tmp_path / "theirs.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for extension, data in sorted(sample.members.items()):
                member = tarfile.TarInfo(f"{sample.key}.{extension}")  # time and owner are 0
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    ours = (tmp_path / "ours.tar").read_bytes()
    assert ours == (tmp_path / "theirs.tar").read_bytes()
    assert (written.samples, written.length, written.bytes) == (5, 10, len(ours))
    assert written.sha256 == hashlib.sha256(ours).hexdigest()
