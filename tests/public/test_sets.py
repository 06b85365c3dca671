"""Standard sets by name, each from small files of its layout: what is pretrained on, what is
tested, and errors."""

from __future__ import annotations

import inspect
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torchvision
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from PIL import Image

from d2v_pretrain.cli import in_words
from d2v_pretrain.config.compose import check, load
from d2v_pretrain.config.recipes import config_folder
from d2v_pretrain.errors import ConfigError
from datamodules.public.audio import transcripts

AUDIO = ["librispeech", "librilight", "speechcommands", "fsdd", "esc50", "yesno"]
VISION = ["cifar10", "cifar100", "stl10", "imagenette", "imagenet"]
TEXT = ["wikitext", "ag_news", "sst2", "trec", "subjectivity", "hf"]
MODALITY = (
    dict.fromkeys(AUDIO, "audio") | dict.fromkeys(VISION, "vision") | dict.fromkeys(TEXT, "text")
)


def transform(name: str, root: Path, *more: str) -> Any:
    """What ``python train.py data=<name> data.root=…`` reads from."""
    words = [
        f"modality={MODALITY[name]}",
        f"data={name}",
        f"data.root={root}",
        f"folder={root.parent / 'run'}",
        *more,
    ]
    cfg = load(words)
    check(cfg)
    try:
        return instantiate(cfg.transform, _convert_="all")
    except InstantiationException as error:
        raise in_words(error) from None


def tone(path: Path, hertz: float, rate: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(rate // 2) / rate)
    soundfile.write(str(path), wave, rate)


def picture(path: Path, colour: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 32), (colour, 90, 60)).save(path)


def write(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


def tones(root: Path, names: list[str]) -> None:
    for i, name in enumerate(names):
        tone(root / name, 200 + 20 * i)


def names_of(read: Any) -> set[str]:
    return {Path(part.file).name for part in read.dataset.stretches}


def test_fsdd_holds_one_speaker_out(tmp_path: Path) -> None:
    root = tmp_path / "data"
    names = [
        f"{d}_{who}_{take}.wav"
        for d in range(3)
        for who in ("theo", "lucas", "jackson")
        for take in range(4)
    ]
    tones(root / "recordings", names)
    tone(root / "other.wav", 100)
    read = transform("fsdd", root)
    assert names_of(read) == {name for name in names if "theo" not in name}
    assert f"{root}: 24 utterances" in read.describe() and read.read(0, 0).ndim == 1
    (task,) = read.dataset.labelled()
    assert (task.name, len(task.train), len(task.test), task.classes) == ("digit", 24, 12, 3)
    pitches = [round(float(np.abs(np.fft.rfft(task.test.read(i))).argmax() * 2)) for i in range(12)]
    heard = dict(zip(pitches, task.test.labels.tolist(), strict=True))
    assert heard == {200 + 20 * i: int(n[0]) for i, n in enumerate(names) if "theo" in n}, (
        "labels go with their files"
    )
    assert [len(batch.labels) for batch in read.probe_tasks()[0].test] == [12]
    with pytest.raises(
        ConfigError, match=r"has no file to pretrain on .*; put its recordings/ \(or fsdd.zip"
    ):
        len(transform("fsdd", root, "data.pretrain=nothing"))


def test_librispeech_pretrains_on_the_train_parts_and_names_speakers_of_dev_clean(
    tmp_path: Path,
) -> None:
    root = tmp_path / "data"
    parts = {"train-clean-100": 12, "train-other-500": 6, "dev-clean": 40, "test-clean": 5}
    for part, count in parts.items():
        for i in range(count):
            speaker, chapter = 10 + i % 2, 7
            tone(
                root
                / "LibriSpeech"
                / part
                / f"{speaker}/{chapter}/{speaker}-{chapter}-{i:04}.flac",
                300 + i,
                16_000,
            )
    write(
        root / "LibriSpeech/dev-clean/10/7/10-7.trans.txt",
        "10-7-0000 MISTER QUILTER IS\n10-7-0002 NOR IS\n",
    )
    read = transform("librispeech", root)
    assert len(read) == 18 and all("/train-" in part.file for part in read.dataset.stretches)
    (task,) = read.dataset.labelled()
    assert task.name == "speaker" and task.classes == 2 and len(task.train) + len(task.test) == 40
    assert transcripts(str(root)) == {"10-7-0000": "MISTER QUILTER IS", "10-7-0002": "NOR IS"}
    assert (
        transform("librispeech", root / "LibriSpeech").dataset.lengths.tolist()
        == read.dataset.lengths.tolist()
    )


def test_speech_commands_by_the_list_of_the_set(tmp_path: Path) -> None:
    root = tmp_path / "SpeechCommands" / "speech_commands_v0.02"
    names = [
        f"{word}/{i:08x}_nohash_{n}.wav"
        for word in ("yes", "no")
        for i in range(4)
        for n in range(2)
    ]
    tones(root, [*names, "_background_noise_/white_noise.wav"])
    held = [name for name in names if "00000003" in name]
    write(root / "testing_list.txt", "\n".join(held))
    write(root / "validation_list.txt", names[0])
    read = transform("speechcommands", tmp_path)
    assert {f"{Path(p.file).parent.name}/{Path(p.file).name}" for p in read.dataset.stretches} == {
        *names
    } - {*held}
    (task,) = read.dataset.labelled()
    assert (len(task.train), len(task.test), task.classes) == (12, 4, 2)
    (root / "testing_list.txt").unlink()
    with pytest.raises(
        ConfigError, match=r"has no testing_list.txt in it or below; unpack speech_commands"
    ):
        len(transform("speechcommands", tmp_path))


def test_esc50_folds_and_yesno_and_librilight(tmp_path: Path) -> None:
    esc = [
        f"{fold}-{fold}{take}0-A-{label}.wav"
        for fold in range(1, 6)
        for take in range(2)
        for label in (0, 36)
    ]
    tones(tmp_path / "esc" / "audio", esc)
    read = transform("esc50", tmp_path / "esc")
    assert names_of(read) == {name for name in esc if name[0] != "5"}
    (task,) = read.dataset.labelled()
    assert (len(task.train), len(task.test), task.classes) == (
        16,
        4,
        2,
    ) and task.note == "tested where the split is 5"
    tones(tmp_path / "esc10", ["1-100032-A.ogg", "5-100033-B.ogg"])
    assert (
        len(transform("esc50", tmp_path / "esc10")) == 2
        and transform("esc50", tmp_path / "esc10").probe_tasks() == []
    )

    tones(tmp_path / "yes" / "waves_yesno", ["0_0_0_1_0_1_1_0.wav", "1_1_1_1_1_1_1_1.wav"])
    assert (
        len(transform("yesno", tmp_path / "yes")) == 2
        and transform("yesno", tmp_path / "yes").probe_tasks() == []
    )

    tones(tmp_path / "light" / "small" / "100" / "a_book", ["one.flac", "two.flac"])
    read = transform("librilight", tmp_path / "light", "data.max_seconds=0.25")
    assert len(read) == 4 and read.probe_tasks() == []


@pytest.mark.parametrize("name, classes", [("cifar10", 10), ("cifar100", 100)])
def test_cifar_in_torchvisions_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, classes: int
) -> None:
    kind = getattr(torchvision.datasets, name.upper())
    folder, rng = tmp_path / kind.base_folder, np.random.default_rng(0)
    folder.mkdir()
    key = "labels" if classes == 10 else "fine_labels"
    pixels = {}
    for file, _ in kind.train_list + kind.test_list:
        pixels[file] = rng.integers(0, 256, (60, 3072)).astype(np.uint8)
        content = {"data": pixels[file], key: [i % classes for i in range(60)]}
        (folder / file).write_bytes(pickle.dumps(content))
    (folder / kind.meta["filename"]).write_bytes(
        pickle.dumps({kind.meta["key"]: [str(c) for c in range(classes)]})
    )
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    read = transform(name, tmp_path)
    assert len(read) == 60 * len(kind.train_list) and read.read(0, 0).shape == (3, 32, 32)
    assert (read.dataset.read(7) == pixels[kind.train_list[0][0]][7].reshape(3, 32, 32)).all()
    (task,) = read.dataset.labelled()
    assert len(task.test) == 60 and task.classes == min(classes, 60)
    test = pixels[kind.test_list[0][0]].reshape(-1, 3, 32, 32)
    ranked = sorted({str(i % classes) for i in range(60)})
    for i in range(60):
        (at,) = [j for j in range(60) if (test[j] == task.test.read(i)).all()]
        assert ranked[task.test.labels[i]] == str(at % classes)


def test_stl10_pretrains_on_the_unlabelled(tmp_path: Path) -> None:
    folder, rng = tmp_path / "stl10_binary", np.random.default_rng(0)
    folder.mkdir()
    made = {}
    for file, count in (("train_X.bin", 20), ("test_X.bin", 10), ("unlabeled_X.bin", 7)):
        made[file] = rng.integers(0, 256, (count, 3, 96, 96)).astype(np.uint8)
        made[file].tofile(folder / file)
        (np.arange(count) % 10 + 1).astype(np.uint8).tofile(folder / file.replace("X", "y"))
    write(folder / "class_names.txt", "\n".join("abcdefghij"))
    with pytest.raises(
        ConfigError, match=r"does not give STL10 .*; unpack stl10_binary.tar.gz in it, or"
    ):
        len(transform("stl10", tmp_path, "transform.size=96"))  # torchvision checks sums
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.datasets.stl10.check_integrity", lambda *_: True)
        read = transform("stl10", tmp_path, "transform.size=96")
        stored = made["unlabeled_X.bin"].transpose(0, 1, 3, 2)  # column by column
        assert len(read) == 7 and (read.dataset.read(3) == stored[3]).all()
        (task,) = read.dataset.labelled()
        assert (len(task.train), len(task.test), task.classes) == (20, 10, 10)


def test_class_folders_of_cifar_imagenette_and_imagenet(tmp_path: Path) -> None:
    for home, test in (("cifar", "test"), ("nette/imagenette2-160", "val"), ("net", "val")):
        for part, count in (("train", 6), (test, 2)):
            for n, name in enumerate(("n01", "n02")):
                for i in range(count):
                    picture(tmp_path / home / part / name / f"{i}.JPEG", 40 * n + i)
    write(tmp_path / "nette/imagenette2-160/noisy_imagenette.csv", "path")
    for name, root in (("cifar10", "cifar"), ("imagenette", "nette"), ("imagenet", "net")):
        read = transform(name, tmp_path / root, "transform.size=32")
        assert len(read) == 12 and all("/train/" in file for file in read.dataset.kept)
        (task,) = read.dataset.labelled()
        assert (len(task.train), len(task.test), task.classes) == (12, 4, 2)
    picture(tmp_path / "net" / "val" / "ILSVRC2012_val_00000001.JPEG", 0)
    with pytest.raises(
        ConfigError,
        match=r"net/val has no class folders, but files such as \['ILSVRC.*; unpack the",
    ):
        transform("imagenet", tmp_path / "net")
    with pytest.raises(
        ConfigError, match="has no folder train/; unpack the training archives as train/<class>/"
    ):
        transform("imagenet", tmp_path / "net" / "val" / "n01")


def texts(name: str, root: Path) -> tuple[list[str], Any]:
    """What is pretrained on, and the probe."""
    dataset = transform(name, root).dataset
    assert str(root) in dataset.describe()
    return list(dataset.texts()), next(iter(dataset.labelled()), None)


def test_ag_news(tmp_path: Path) -> None:
    rows = [f'"{i % 4 + 1}","Title {i}","Some, ""quoted"" news {i}"' for i in range(40)]
    write(tmp_path / "ag_news_csv" / "train.csv", "\n".join(rows))
    header = '"label","title","description"'
    write(
        tmp_path / "ag_news_csv" / "test.csv", "\n".join([header, *rows[:8]]).replace("news", "new")
    )
    seen, task = texts("ag_news", tmp_path)
    assert seen == [f'Title {i} Some, "quoted" news {i}' for i in range(40)]
    assert (len(task.train), len(task.test), task.classes) == (40, 8, 4)
    topics = sorted(["world", "sports", "business", "science"])
    for i in range(8):
        number = int(task.test.read(i).split()[-1])
        assert topics[task.test.labels[i]] == ["world", "sports", "business", "science"][number % 4]
    (tmp_path / "ag_news_csv" / "train.csv").unlink()
    write(tmp_path / "ag_news_csv" / "test.csv", "\n".join(rows))
    seen, task = texts("ag_news", tmp_path)
    assert 0 < len(task.test) < 20 and len(seen) == len(task.train) == 40 - len(task.test)


@pytest.mark.parametrize("columns", ["label\tsentence", "sentence\tlabel", "label\tcontent"])
def test_sst2_whatever_its_columns_are(tmp_path: Path, columns: str) -> None:
    def row(sentence: str, label: int) -> str:
        words = {"sentence": sentence, "content": sentence, "label": str(label)}
        return "\t".join(words[column] for column in columns.split("\t"))

    for part, count in (("train", 12), ("dev", 4), ("test", 3)):
        lines = [row(f'{part} "phrase {i} ', i % 2) for i in range(count)]
        write(tmp_path / "SST-2" / f"{part}.tsv", "\n".join([columns, *lines]))
    seen, task = texts("sst2", tmp_path)
    assert seen == [f'train "phrase {i}' for i in range(12)] and len(task.test) == 4
    assert all(int(task.test.read(i)[-1]) % 2 == task.test.labels[i] for i in range(4))


def test_trec_and_subjectivity_are_latin_1(tmp_path: Path) -> None:
    lines = [f"{kind}:fine What is a café {i} ?" for i in range(6) for kind in ("DESC", "NUM")]
    write(tmp_path / "trec" / "train_5500.label", "\n".join(lines), "latin-1")
    write(tmp_path / "trec" / "TREC_10.label", "\n".join(lines[:4]), "latin-1")
    seen, task = texts("trec", tmp_path / "trec")
    assert seen[:2] == ["What is a café 0 ?"] * 2 and (
        len(task.train),
        len(task.test),
        task.classes,
    ) == (12, 4, 2)
    for name in ("plot", "quote"):
        write(
            tmp_path / "sub" / f"{name}.tok.gt9.5000",
            "".join(f"{name} ä {i} \n" for i in range(30)),
            "latin-1",
        )
    seen, task = texts("subjectivity", tmp_path / "sub")
    assert seen == [f"{name} ä {i}" for name in ("plot", "quote") for i in range(30) if i % 10]
    assert (len(task.train), len(task.test), task.classes) == (54, 6, 2)


def test_wikitext_reads_the_training_file_alone(tmp_path: Path) -> None:
    write(
        tmp_path / "wikitext-2" / "wiki.train.tokens", " \n = Title = \n \n Some <unk> words . \n"
    )
    write(tmp_path / "wikitext-2" / "wiki.valid.tokens", " unseen \n")
    assert texts("wikitext", tmp_path) == (["= Title =", "Some <unk> words ."], None)
    write(tmp_path / "bad" / "train.txt", "café", "latin-1")
    with pytest.raises(ConfigError, match=r"train.txt cannot be read \('utf-8"):
        texts("wikitext", tmp_path / "bad")


@pytest.mark.parametrize("name", ["wikitext", "ag_news", "sst2", "trec", "subjectivity"])
def test_missing_texts_say_what_to_put_where(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"data.root=.* has no .* in it or below; put "):
        texts(name, tmp_path)


@pytest.mark.parametrize("name", AUDIO)
def test_a_missing_folder_says_what_to_put_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"has no folder of the set; (unpack|put) "):
        transform(name, tmp_path / "nowhere")


def hub(monkeypatch: pytest.MonkeyPatch, load_dataset: Callable[..., Any]) -> None:
    """A stand-in for the package `datasets`, which is optional: its two names that we call."""
    fake = types.ModuleType("datasets")
    fake.load_dataset, fake.DownloadConfig = load_dataset, lambda **words: words  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)


class Rows(dict[str, list[Any]]):
    """What we use of ``datasets.Dataset``."""

    def __len__(self) -> int:
        return len(self["text"])

    column_names = ("text", "label")


def test_hub_asks_for_the_split_and_goes_online_only_if_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(*words: Any, split: str, download_config: Any) -> Rows:
        asked.append((*words, split, download_config["local_files_only"]))
        return Rows(
            text=[f"{split} {i}\n\nmore" for i in range(10)], label=[i % 2 for i in range(10)]
        )

    hub(monkeypatch, load_dataset)
    dataset = transform(
        "hf", Path("some/name"), "data.config=small", "data.label_column=label"
    ).dataset
    assert list(dataset.texts())[:3] == ["train 0", "more", "train 1"]
    assert dataset.describe() == "some/name, train: 10 texts"
    (task,) = dataset.labelled()
    assert (len(task.train), len(task.test)) == (10, 10) and task.test.read(0).startswith("test ")
    assert asked == [("some/name", "small", "train", True), ("some/name", "small", "test", True)]
    with pytest.raises(
        ConfigError, match=r"data.text_column=words is no column of .*; it has text, label"
    ):
        list(transform("hf", Path("some/name"), "data.text_column=words").dataset.texts())
    transform("hf", Path("n"), "data.download=true").dataset.rows  # noqa: B018
    assert asked[-1][-1] is False


def test_hub_without_the_package_or_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ConfigError,
        match=r"needs the package datasets; type pip install -e '.\[datasets\]'",
    ):
        transform("hf", Path("name")).dataset.rows  # noqa: B018

    def load_dataset(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("Couldn't find\nname")

    hub(monkeypatch, load_dataset)
    with pytest.raises(
        ConfigError,
        match=r"data.root=name cannot be loaded \(Couldn't find name\); check data.root",
    ):
        transform("hf", Path("name")).dataset.rows  # noqa: B018


@pytest.mark.filterwarnings("ignore")  # of dill and pyarrow
def test_hub_reads_files_through_the_real_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for part in ("train", "test"):
        write(
            tmp_path / "data" / f"{part}.csv",
            "text,label\n" + "\n".join(f"{part} {i},{i % 2}" for i in range(12)),
        )
    dataset = transform("hf", tmp_path / "data", "data.label_column=label").dataset
    assert (
        list(dataset.texts()) == [f"train {i}" for i in range(12)]
        and len(dataset.labelled()[0].test) == 12
    )
    datasets.load_dataset(str(tmp_path / "data")).save_to_disk(str(tmp_path / "saved"))
    assert list(transform("hf", tmp_path / "saved").dataset.texts()) == [
        f"train {i}" for i in range(12)
    ]
    with pytest.raises(ConfigError, match="cannot be loaded"):
        transform("hf", tmp_path / "saved", "data.split=nothing").dataset.rows  # noqa: B018


DOWNLOADED = [("librispeech", 4), ("speechcommands", 1), ("yesno", 1), ("imagenette", 1)]


@pytest.mark.parametrize("name, parts", DOWNLOADED)
def test_a_download_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, parts: int
) -> None:
    """The library's class is given arguments that it has, and a hidden folder that becomes the real
    one at the end."""
    cfg = load([f"modality={MODALITY[name]}", f"data={name}", f"data.root={tmp_path / 'data'}"])
    module, _, kind = cfg.data.library_class.rpartition(".")
    signature = inspect.signature(getattr(pytest.importorskip(module), kind).__init__)
    calls: list[dict[str, Any]] = []

    def library(root: str, **words: Any) -> None:
        signature.bind(None, root, **words)
        calls.append(words)
        assert words["download"] is True and Path(root).name.startswith("."), (
            "not seen before it is whole"
        )
        tone(Path(root, "inner", f"half-{len(calls)}.wav"), 100)
        if (
            len(calls) == parts
            and len(parts_there()) == parts - 1
            and not Path(root).with_name("failed").exists()
        ):
            Path(root).with_name("failed").touch()
            raise RuntimeError("the network is gone")

    def parts_there() -> list[Path]:
        return sorted(tmp_path.glob("data/[!.]*-*"))

    monkeypatch.setattr(f"{module}.{kind}", library)
    with pytest.raises(ConfigError, match=r"does not give \S+ \(the network is gone\); try again"):
        transform(name, tmp_path / "data", "data.download=true")
    assert len(parts_there()) == parts - 1
    with pytest.raises(ConfigError, match="has no "):  # whole, but not what the set needs
        len(transform(name, tmp_path / "data", "data.download=true"))
    assert len(parts_there()) == parts and len(calls) == parts + 1, (
        "only what was missing is fetched again"
    )


def test_torchvision_fetches_only_if_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        torchvision.datasets.CIFAR10, "download", lambda self: asked.append(self.root)
    )
    with pytest.raises(
        ConfigError,
        match=r"CIFAR10 .*; unpack cifar-10-python.tar.gz in it, or type data.download=true",
    ):
        len(transform("cifar10", tmp_path / "data"))
    assert asked == []
    with pytest.raises(
        ConfigError, match=r"does not give CIFAR10 .*; try again, or unpack cifar-10"
    ):
        transform("cifar10", tmp_path / "data", "data.download=true")
    assert asked == [str(tmp_path / "data")]


@pytest.mark.parametrize("name", ["librilight", "fsdd", "esc50", "imagenet"])
def test_sets_that_no_library_fetches(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"data.download=True is not offered for this set"):
        transform(name, tmp_path, "data.download=true")


@pytest.mark.parametrize("name", MODALITY)
def test_every_set_says_where_its_data_come_from_and_on_what_terms(name: str) -> None:
    text = (config_folder() / "data" / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    words = (
        "CC BY",
        "public domain",
        "research",
        "academic",
        "No licence",
        "no licence",
        "icence of what you name",
    )
    assert any(word in text for word in words)
