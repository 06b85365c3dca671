"""What the datasets read, against the files that went in; exactly once for any workers and ranks;
labels; text."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from d2v_pretrain.errors import ConfigError, DataError
from datamodules.module import PretrainDataModule
from datamodules.order import EpochOrder
from datamodules.transforms.audio import AudioTransform
from datamodules.transforms.base import normalise
from datamodules.transforms.text import TextTransform, TokenBlocks
from datamodules.transforms.vision import VisionTransform
from tests.shards.tiny_shards import audio, batches, flac, images, npy, png, sounds, texts, write


def test_sounds_are_those_of_the_files(tmp_path: Path) -> None:
    """Of any rate, at any place, with and without an index that is there."""
    waves = {f"{i}": flac(0.3 + i / 10, rate, i) for i, rate in enumerate((16_000, 8_000, 44_100))}
    write(tmp_path / "a" / "1.tar", [(f"{k}.FLAC", w) for k, w in waves.items()])
    write(
        tmp_path / "a" / "0.tar",
        [("x.flac", flac(0.05)), ("y.flac", flac(0.5)), ("z.flac", flac(11))],
    )
    for _ in range(2):
        dataset = audio(tmp_path / "a", tmp_path)
        assert len(dataset) == 4 and dataset.shard_sizes.tolist() == [1, 3]
        for i, wave in enumerate((flac(0.5), *waves.values())):
            sound, rate = soundfile.read(io.BytesIO(wave), dtype="float32")
            read = dataset.read(i)
            assert read is not None and len(read) == dataset.lengths[i] == -(
                -len(sound) * 16_000 // rate
            )
            assert rate != 16_000 or np.array_equal(read, sound)
        assert dataset.name(3).endswith("a/1.tar: 2") and "4 utterances" in dataset.describe()
    assert (
        "2 samples are shorter than min_seconds=0.1 or longer than"
        in (tmp_path / "skipped.jsonl").read_text()
    )


def test_images_are_those_of_the_files(tmp_path: Path) -> None:
    write(
        tmp_path / "a.tar", [("0.png", png(0)), ("0.cls", b"0"), ("1.cls", b"1"), ("1.png", png(1))]
    )
    dataset = images(tmp_path, tmp_path)
    for i in range(2):
        known = np.asarray(Image.open(io.BytesIO(png(i)))).transpose(2, 0, 1)
        assert np.array_equal(dataset.read(i), known)


def test_a_folder_that_cannot_be_written_gets_its_indexes_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = sounds(tmp_path / "a")
    save = __import__("datamodules.shards.opening", fromlist=["save"]).save

    def refuse(index: object, path: Path) -> None:
        if path.parent == tmp_path / "a":
            raise PermissionError(13, "Permission denied")
        save(index, path)

    monkeypatch.setattr("datamodules.shards.opening.save", refuse)
    assert len(audio(tmp_path / "a", tmp_path)) == count
    monkeypatch.setattr(
        "datamodules.shards.opening.scan", None
    )  # the second time nothing is read again
    assert len(audio(tmp_path / "a", tmp_path)) == count
    assert not list((tmp_path / "a").glob("*.idx"))


def test_a_cache_that_cannot_take_an_index_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another process too."""
    sounds(tmp_path / "a")

    def refuse(index: object, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("datamodules.shards.opening.save", refuse)
    with pytest.raises(ConfigError, match=r"cache_folder=\S+ cannot take .*No space left") as told:
        len(audio(tmp_path / "a", tmp_path))
    again = pickle.loads(pickle.dumps(told.value))
    assert str(again) == str(told.value) and again.key == "data.cache_folder"
    sent = pickle.loads(pickle.dumps(DataError(f"Traceback …\nDataError: {again}\n")))
    assert isinstance(sent, DataError) and str(sent) == str(again)


PAIRS = [(0, 1), (0, 2), (1, 1), (2, 2), (3, 4)]
OTHERS = [
    pytest.param(*p, marks=pytest.mark.slow)
    for p in itertools.product((0, 1, 2, 3), (1, 2, 4))
    if p not in PAIRS
]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers, world", PAIRS + OTHERS)
def test_each_sample_once_a_pass_for_any_workers_and_ranks(
    tmp_path: Path, workers: int, world: int
) -> None:
    """Windows of shards, two readers; and what is read under a number is what the files have under
    it."""
    count = sounds(tmp_path / "a", shards=7)
    transform = AudioTransform(audio(tmp_path / "a", tmp_path), 5, 0)
    with_names = sorted((tmp_path / "a").glob("*.tar"))
    files = [m for tar in with_names for m in _flacs(tar)]
    plan = EpochOrder(transform.dataset.shard_sizes, 3, 2, transform.lengths, buckets=2, window=2)
    [alone] = batches(transform, plan, slots=4, readers=2)
    reference = [(batch.epoch, batch.ids.tolist()) for batch in itertools.islice(alone, 32)]
    first = Counter(i for epoch, ids in reference for i in ids if epoch == 0)
    assert first == dict.fromkeys(range(count), 1)
    loaders = batches(transform, plan, workers, world, slots=4, readers=2)
    seen = [next(loader) for _ in range(8) for loader in loaders for _ in range(4 // world)]
    assert [(batch.epoch, batch.ids.tolist()) for batch in seen] == reference
    for batch in seen:
        for row, i in zip(batch.inputs, batch.ids):
            sound = normalise(soundfile.read(io.BytesIO(files[i]), dtype="float32")[0])
            assert torch.equal(row[: len(sound)], sound)


def _flacs(tar: Path) -> list[bytes]:
    with tarfile.open(tar) as members:
        return [members.extractfile(m).read() for m in members if m.name.endswith("flac")]  # type: ignore[union-attr]


def test_labels_and_the_shards_that_are_kept_for_the_test(tmp_path: Path) -> None:
    sizes = (
        [len(_flacs(tar)) for tar in sorted(tmp_path.glob("a/*.tar"))]
        if sounds(tmp_path / "a")
        else []
    )
    dataset = audio(tmp_path / "a", tmp_path, label_key="cls")
    assert dataset.shard_sizes.tolist() == [*sizes[:-1], 0] and len(dataset) == sum(sizes[:-1])
    [task] = dataset.labelled()
    assert task.classes == 2 and len(task.train) == sum(sizes[:-1]) and len(task.test) == sizes[-1]
    for split in (task.train, task.test):
        for i, label in enumerate(split.labels):
            number = round(
                (len(split.read(i)) / 16_000 - 0.2) / 0.01
            )  # a sound's length tells its number
            assert number % 2 == label and (number >= sum(sizes[:-1])) == (split is task.test)
    with pytest.raises(ConfigError, match="test_shards=5 must leave some"):
        len(audio(tmp_path / "a", tmp_path, label_key="cls", test_shards=5))


def test_labels_from_a_field_of_json(tmp_path: Path) -> None:
    for s in range(2):
        rows = [(f"{i}.json", json.dumps({"who": f"p{i % 3}"}).encode()) for i in range(6)]
        write(tmp_path / f"{s}.tar", sorted([*rows, *((f"{i}.png", png(i)) for i in range(6))]))
    [task] = images(tmp_path, tmp_path, label_key="json.who").labelled()
    assert task.classes == 3 and Counter(task.test.labels.tolist()) == {0: 2, 1: 2, 2: 2}
    for key in ("cls", "json.whom"):
        with pytest.raises(ConfigError, match=f"data.label_key={key} is no member"):
            len(images(tmp_path, tmp_path, label_key=key))


def test_blocks_of_tokens(tmp_path: Path) -> None:
    blocks = [[0, *range(5, 5 + n), 2] for n in (6, 6, 3)]
    write(tmp_path / "a" / "a.tar", [(f"{i}.npy", npy(b)) for i, b in enumerate(blocks)])
    transform = TextTransform(texts(tmp_path / "a", tmp_path), 8, 1000, None, None)
    assert isinstance(transform, TokenBlocks)
    assert [transform.read(i, 0).tolist() for i in range(3)] == blocks  # type: ignore[union-attr]
    assert transform.lengths.tolist() == [8, 8, 5] and transform.placeholder(5).shape == (5,)
    assert transform.describe().endswith("a, 1 shards: 3 blocks, 21 tokens (1,000 ids)")
    with pytest.raises(
        ConfigError, match=r"transform.block=7 is less than the blocks in the shards, 8 tokens"
    ):
        TextTransform(texts(tmp_path / "a", tmp_path), 7, 1000, None, None)
    (tmp_path / "a" / "manifest.json").write_text('{"vocab_size": 999, "shards": []}')
    with pytest.raises(ConfigError, match=r"transform.vocab_size=1000 must be 999"):
        TextTransform(texts(tmp_path / "a", tmp_path), 8, 1000, None, None)
    assert (
        texts(tmp_path / "a", tmp_path, vocab_size=10).read(0) is None
    )  # beyond the model's table
    assert (
        "has ids 0 to 10, and transform.vocab_size=10" in (tmp_path / "skipped.jsonl").read_text()
    )


def test_plain_texts(tmp_path: Path) -> None:
    rows = [
        ("0.txt", b"a first line\n\n and a second \n"),
        ("1.txt", b"\xff\xfe"),
        ("2.txt", "dritté".encode()),
    ]
    write(tmp_path / "a" / "a.tar", rows)
    dataset = texts(tmp_path / "a", tmp_path)
    transform = TextTransform(dataset, 8, 300, None, None)
    assert type(transform) is TextTransform and list(dataset.texts()) == [
        "a first line",
        "and a second",
        "dritté",
    ]
    assert "1" in (tmp_path / "skipped.jsonl").read_text()


ROOTS = [
    "a",
    "a/s-{000..004}.tar",
    "a/s-*.tar",
    ["a/s-00{0,1}.tar", "a/s-00[234].tar", "a/s-001.tar"],
]


def test_other_images_are_other_data(tmp_path: Path) -> None:
    """All have length 1, so sizes alone would not tell: the fingerprint that a checkpoint keeps
    must."""
    prints = []
    for name, seed in (("a", 0), ("b", 0), ("c", 5)):
        write(tmp_path / name / "0.tar", [(f"{i}.png", png(seed + i)) for i in range(4)])
        half = (0.5, 0.5, 0.5)
        transform = VisionTransform(
            images(tmp_path / name, tmp_path), 8, (0.5, 1), (1, 1), 0, 0, half, half, 1, False, 0
        )
        prints.append(PretrainDataModule(transform, 2, 2, 0).fingerprint)
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("root", ROOTS, ids=str)
def test_ways_to_name_shards(tmp_path: Path, root: str | list[str]) -> None:
    count = sounds(tmp_path / "a")
    named = [str(tmp_path / r) for r in root] if isinstance(root, list) else tmp_path / root
    assert len(audio(named, tmp_path)) == count


def test_names_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no shard \(.tar\)"):
        len(audio(tmp_path, tmp_path))
    with pytest.raises(ConfigError, match=r"b.tar cannot be read .* and has no index"):
        len(audio(tmp_path / "b.tar", tmp_path))
    (tmp_path / "c.tar.gz").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"has a compressed shard, .*unpack it"):
        len(audio(tmp_path / "c.tar.gz", tmp_path))
