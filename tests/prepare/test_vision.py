"""Images: kept byte by byte or made smaller, upright, with classes from folders; bad files
named."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.prepare.commands import images, manifest, prepare, read, said, skipped


def test_bytes_and_classes_are_kept(tmp_path: Path) -> None:
    root = images(tmp_path / "in", 2, 12)
    assert prepare("vision", root, tmp_path / "out", "shard_samples=10") == 0
    samples = read(tmp_path / "out")
    names = [json.loads(sample["json"])["file"] for sample in samples]
    classes = manifest(tmp_path / "out")["classes"]
    assert sorted(names) == sorted(
        str(p.relative_to(root)) for p in root.rglob("*.*")
    ) and names != sorted(names)
    for sample, name in zip(samples, names):
        assert sample[name.rpartition(".")[2]] == (root / name).read_bytes()
        assert classes[int(sample["cls"])] == name.split("/")[0]


def test_a_test_split_is_not_packed_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        images(tmp_path / "in" / split, 2, 6)
    assert prepare("vision", tmp_path / "in", tmp_path / "out") == 0
    assert "test is packed too; input=…/train leaves it out" in said(capsys)
    assert {int(sample["cls"]) for sample in read(tmp_path / "out")} == {0, 1}


def test_folders_that_are_no_classes_give_none(tmp_path: Path) -> None:
    images(tmp_path / "in", 1)
    assert prepare("vision", tmp_path / "in", tmp_path / "out") == 0
    assert not any("cls" in sample for sample in read(tmp_path / "out"))
    assert manifest(tmp_path / "out")["classes"] == []


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_smaller_images_are_upright_and_of_their_shape(tmp_path: Path, orientation: int) -> None:
    root = tmp_path / "in"
    root.mkdir()
    stored = Image.new("RGB", (90, 60), "black")
    stored.paste("red", (0, 0, 45, 30))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(root / "a.jpg", quality=95, exif=exif)
    assert prepare("vision", root, tmp_path / "out", "short_side=20") == 0
    [sample] = read(tmp_path / "out")
    made = Image.open(io.BytesIO(sample["jpg"]))
    turned = {
        1: None,
        3: Image.Transpose.ROTATE_180,
        6: Image.Transpose.ROTATE_270,
        8: Image.Transpose.ROTATE_90,
    }
    way = turned[orientation]
    upright = (stored if way is None else stored.transpose(way)).resize(
        (30, 20) if way in (None, 1, 3) else (20, 30)
    )
    assert (
        made.format == "JPEG" and made.size == upright.size and made.getexif().get(0x0112, 1) == 1
    )
    assert np.abs(np.asarray(made, float) - np.asarray(upright, float)).mean() < 8


def test_small_images_keep_their_bytes(tmp_path: Path) -> None:
    root = images(tmp_path / "in")
    assert prepare("vision", root, tmp_path / "out", "short_side=14") == 0
    for sample in read(tmp_path / "out"):
        name = json.loads(sample["json"])["file"]
        assert sample[name.rpartition(".")[2]] == (root / name).read_bytes()


def test_quality_decides_the_size(tmp_path: Path) -> None:
    root = images(tmp_path / "in")
    for quality in (30, 95):
        assert (
            prepare("vision", root, tmp_path / str(quality), "short_side=10", f"quality={quality}")
            == 0
        )
    small, large = (
        sum(len(s["jpg"]) for s in read(tmp_path / str(quality))) for quality in (30, 95)
    )
    assert small < 0.8 * large


def test_bad_files_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = images(tmp_path / "in")
    (root / "class0/zero.jpg").write_bytes(b"")
    (root / "class0/page.png").write_text("<html>")
    Image.new("RGB", (4, 40)).save(root / "class1/thin.png")
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(
        whole, "JPEG"
    )
    (root / "class1/torn.jpg").write_bytes(whole.getvalue()[:2000])
    assert prepare("vision", root, tmp_path / "out", "max_bad_share=0.5") == 0
    reasons = skipped(tmp_path / "out")
    assert set(reasons) == {
        "class0/zero.jpg",
        "class0/page.png",
        "class1/thin.png",
        "class1/torn.jpg",
    }
    assert (
        "too small: 4 pixels" in reasons["class1/thin.png"]
        and "cannot be decoded" in reasons["class1/torn.jpg"]
    )
    assert len(read(tmp_path / "out")) == 12 and "4 files were left out" in said(capsys)
