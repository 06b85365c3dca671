"""Damaged, missing and hostile shards: the order stays, each is named once, and too much stops the
run."""

from __future__ import annotations

import builtins
import io
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from d2v_pretrain.errors import ConfigError
from datamodules.order import EpochOrder
from datamodules.shards.audio import AudioShards
from datamodules.shards.index import build_index, load
from datamodules.transforms.audio import AudioTransform
from tests.shards.tiny_shards import audio, batches, images, png, sounds, texts, write


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Five indexed shards: 3, 6, 3, 6 and 3 sounds."""
    sounds(tmp_path / "a")
    assert len(audio(tmp_path / "a", tmp_path)) == 21
    return tmp_path / "a"


def listed(tmp_path: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert len({line["file"] for line in lines}) == len(lines), "each once"
    return {Path(line["file"]).name: line["reason"] for line in lines}


def cut(tar: Path) -> None:
    os.truncate(tar, int(load(tar.with_suffix(".idx")).entries["offset"][4]) + 700)


def flip(tar: Path) -> None:
    """A bit in the sound of sample 1, the header of sample 2, and 40 bytes over the end of 3 and
    the header of 4."""
    places = load(tar.with_suffix(".idx")).entries["offset"].astype(int).tolist()
    content = bytearray(tar.read_bytes())
    content[places[1] + 512 + 3000] ^= 16
    content[places[2] + 5] ^= 1
    content[places[4] - 20 : places[4] + 20] = b"\xff" * 40
    tar.write_bytes(content)


def other(tar: Path) -> None:
    """Of the same size, and quite another content."""
    tar.write_bytes(bytes(reversed(tar.read_bytes())))


def folder_instead(tar: Path) -> None:
    tar.unlink()
    tar.mkdir()


DAMAGE: list[tuple[Callable[[Path], None], list[int], str]] = [
    (cut, [7, 8], "breaks off"),
    (flip, [4, 5, 7], "cannot be decoded"),
    (Path.unlink, [3, 4, 5, 6, 7, 8], "No such file"),
    (other, [3, 4, 5, 6, 7, 8], "wrong header"),
    (folder_instead, [3, 4, 5, 6, 7, 8], "Is a directory"),
]


@pytest.mark.parametrize("when", ["before", "while"])
@pytest.mark.parametrize("damage, lost, reason", DAMAGE, ids=[d[0].__name__ for d in DAMAGE])
def test_training_goes_on_in_the_same_order(
    tmp_path: Path,
    made: Path,
    damage: Callable[[Path], None],
    lost: list[int],
    reason: str,
    when: str,
) -> None:
    """Against the batches of sound shards: ids alike, rows alike but for the lost ones, which weigh
    nothing."""
    copy = shutil.copytree(made, tmp_path / "b")
    if when == "before":
        damage(copy / "s-001.tar")
    damaged = AudioTransform(audio(copy, tmp_path), 5, 0)
    plan = EpochOrder(damaged.dataset.shard_sizes, 0, 4, damaged.lengths)
    [good] = batches(AudioTransform(audio(made, tmp_path, skipped_path=None), 5, 0), plan)
    if when == "while":
        damage(copy / "s-001.tar")
    seen = set()
    [bad] = batches(damaged, plan, workers=2)
    for a, b in zip(itertools.islice(good, 12), bad):  # two passes
        assert torch.equal(a.ids, b.ids) and a.inputs.shape == b.inputs.shape
        weight = torch.ones(len(b.ids)) if b.weight is None else b.weight
        assert torch.equal(a.inputs[weight == 1], b.inputs[weight == 1])
        seen |= set(b.ids[weight == 0].tolist())
    assert seen == set(lost)
    named = listed(tmp_path)
    assert any(reason in text for text in named.values()), named
    whole = any(name == "s-001.tar" for name in named)
    assert whole or {int(name.split()[-1]) for name in named if "sample" not in name} <= set(lost)


def test_too_much_is_missing_at_the_start(tmp_path: Path, made: Path) -> None:
    for name in ("s-001.tar", "s-003.tar"):
        (made / name).unlink()
    with pytest.raises(
        ConfigError, match=r"12 unusable of 21 samples, more than max_bad_share=0.5 .*s-001.tar"
    ):
        len(audio(made, tmp_path))
    assert len(audio(made, tmp_path, max_bad_share=0.6)) == 21


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_that_go_bad_while_training_are_counted(
    tmp_path: Path, made: Path, workers: int
) -> None:
    """Those that were missing at the start, or broke off before a sample, do not count again."""
    cut(made / "s-001.tar")
    (made / "s-002.tar").unlink()
    transform = AudioTransform(audio(made, tmp_path), 5, 0)
    plan = EpochOrder(transform.dataset.shard_sizes, 0, 2, transform.lengths)
    other(made / "s-003.tar")
    [loader] = batches(transform, plan, workers)
    seen = list(itertools.islice(loader, 11))
    lost = [i for b in seen if b.weight is not None for i in b.ids[b.weight == 0].tolist()]
    assert sorted(lost) == [7, 8, *range(9, 12), *range(12, 18)]
    assert sum(batch.items for batch in seen) == transform.numbered.item_count == 21
    assert sum(batch.bad for batch in seen) == 6, "the samples of s-003"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_of_shards_that_is_moved_away(tmp_path: Path, made: Path, workers: int) -> None:
    """The batch says so, in place of a list of bad samples; nothing of it has weight."""
    transform = AudioTransform(audio(made, tmp_path), 5, 0)
    plan = EpochOrder(transform.dataset.shard_sizes, 0, 3, transform.lengths)
    made.rename(tmp_path / "elsewhere")
    [loader] = batches(transform, plan, workers)
    batch = next(loader)
    assert "data.root=" in batch.fault and f"the folder {made} is not there" in batch.fault
    assert batch.weight is not None and not batch.weight.any() and batch.bad == 0
    assert (tmp_path / "skipped.jsonl").read_text() == ""
    made.mkdir()
    [loader] = batches(transform, plan, workers)
    assert "none of its 5 files is there" in next(loader).fault, "as an empty mount point"


def test_texts_that_cannot_be_read_are_too_many(tmp_path: Path) -> None:
    """When they are tokenised, before training; as the folder of text files, which is scanned."""
    rows = [(f"{n}.txt", b"a text" if n % 4 else b"\xff\xfe") for n in range(20)]
    write(tmp_path / "a" / "0.tar", rows)
    assert len(list(texts(tmp_path / "a", tmp_path, max_bad_share=0.3).texts())) == 15
    rule = r"max_bad_share=0.2 does not allow 5 unusable of 20 items: .*0.tar: 16 \(.*lists all"
    with pytest.raises(ConfigError, match=rule):
        list(texts(tmp_path / "a", tmp_path, max_bad_share=0.2).texts())


def test_permission_denied(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, whom nothing is denied: the calls say so instead."""

    def refusing(call: Callable, name: str) -> Callable:
        def tried(path: object, *args: object, **more: object) -> object:
            if str(path).endswith(name):
                raise PermissionError(13, "Permission denied", path)
            return call(path, *args, **more)

        return tried

    dataset = audio(made, tmp_path)
    assert len(dataset) == 21
    monkeypatch.setattr(os, "open", refusing(os.open, "s-001.tar"))
    assert [i for i in range(21) if dataset.read(i) is None] == [3, 4, 5, 6, 7, 8]
    assert listed(tmp_path) == {"s-001.tar": "cannot be read (Permission denied)"}
    monkeypatch.setattr(builtins, "open", refusing(open, "s-001.tar"))
    assert len(audio(made, tmp_path)) == 21
    assert "Permission denied: its 6 samples" in listed(tmp_path)["s-001.tar"]


def test_an_index_that_is_damaged_or_of_another_tar_is_made_anew(
    tmp_path: Path, made: Path
) -> None:
    good = (made / "s-001.idx").read_bytes()
    for bad in (
        good[:-7],
        b"x" * 300,
        good[:50] + b"?" + good[51:],
        (made / "s-000.idx").read_bytes(),
    ):
        (made / "s-001.idx").write_bytes(bad)
        dataset = audio(made, tmp_path)
        assert all(dataset.read(i) is not None for i in range(21))
        assert (made / "s-001.idx").read_bytes() == good


def test_an_index_that_changes_while_training(tmp_path: Path, made: Path) -> None:
    dataset = audio(made, tmp_path)
    assert len(dataset) == 21
    shutil.copy(made / "s-000.idx", made / "s-001.idx")
    (made / "s-003.idx").unlink()
    assert [i for i in range(21) if dataset.read(i) is None] == [*range(3, 9), *range(12, 18)]
    assert "was changed while training" in listed(tmp_path)["s-001.tar"]


def test_an_image_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    bomb = io.BytesIO()
    Image.new("1", (14_000, 14_000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 100_000
    write(tmp_path / "a.tar", [("0.png", png(0)), ("1.png", bomb.getvalue()), ("2.png", png(2))])
    dataset = images(tmp_path, tmp_path)
    assert [dataset.read(i) is None for i in range(3)] == [False, True, False]
    assert "exceeds limit" in listed(tmp_path)["a.tar: 1"]


def test_names_that_point_elsewhere_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    rows = [
        ("../0.png", png(0)),
        ("/etc/1.png", png(1)),
        ("a/../../2.png", png(2)),
        ("a/3.png", png(3)),
    ]
    tar = write(tmp_path / "deep" / "a" / "a.tar", rows)
    before = {
        *tmp_path.rglob("*"),
        tmp_path / "skipped.jsonl",
        tmp_path / "cache",
        tar.with_suffix(".idx"),
    }
    dataset = images(tar.parent, tmp_path, max_bad_share=0.8)
    assert len(dataset) == 1 and dataset.read(0) is not None
    reasons = listed(tmp_path)
    assert sum("points out of the folder" in reason for reason in reasons.values()) == 3
    assert {p for p in tmp_path.rglob("*") if p.parent.name != "cache"} <= before
    # and if the index were forged
    assert dataset.shards[0].lengths.tolist() == [0, 0, 0, 1]
    dataset.shards[0].lengths[0] = 1
    assert dataset._read(0, 0) is None and "is refused" in listed(tmp_path)["a.tar: sample 0"]


def test_a_tar_without_an_index_that_breaks_off(tmp_path: Path, made: Path) -> None:
    cut(made / "s-001.tar")
    build_index(made / "s-001.tar")
    dataset = audio(made, tmp_path)
    assert isinstance(dataset, AudioShards) and len(dataset) == 19
    assert all(dataset.read(i) is not None for i in range(19))
