"""TextSet, Wikitext: public datasets of texts, read from their own files."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

from d2v_pretrain.errors import ConfigError
from datamodules.datasets.base import TextDataset
from datamodules.datasets.labels import LabelRow, hashed, labelled
from datamodules.datasets.probe_tasks import Labelled
from datamodules.datasets.unusable import Unusable, reading
from datamodules.public.fetch import demand

TOPICS = {"1": "world", "2": "sports", "3": "business", "4": "science"}


class TextSet(TextDataset):
    """Labelled texts; the test texts of the probe are left out of pretraining.

    Args:
        root: folder of the set; its files may lie deeper.
        rows: the reader of its files: ``ag_news``, ``sst2``, ``trec`` or ``subjectivity``.
        task: what the label is ("topic").
        get: which files to put where, for the error message if none are found.
    """

    def __init__(self, root: str, rows: str, task: str, get: str) -> None:
        self.root, self.task, self.get, self.reader = root, task, get, _READERS[rows]

    @cached_property
    def rows(self) -> list[LabelRow]:
        """All texts with their classes, those for training and those for the test."""
        csv.field_size_limit(sys.maxsize)  # texts may be longer than the 131,072 of the default
        try:
            with reading("cannot be read"):
                return list(self.reader(self.root, self.get))
        except Unusable as error:
            raise ConfigError("data.root", self.root, str(error), "get the files again") from None

    def texts(self) -> Iterator[str]:
        """The texts to pretrain on."""
        return (row.key for row in self.rows if not row.test)

    def describe(self) -> str:
        seen = sum(not row.test for row in self.rows)
        return f"{self.root}: {seen:,} texts to pretrain on, {len(self.rows) - seen:,} to test"

    def labelled(self) -> list[Labelled[str]]:
        return [labelled(self.task, self.rows, str, "tested on the set's test texts")]


class Wikitext(TextDataset):
    """The training lines of WikiText-2 or -103, with their ``<unk>``; no labels.

    Args:
        root: folder of the set; its file may lie deeper.
        get: which file to put where, for the error message if it is not found.
    """

    def __init__(self, root: str, get: str) -> None:
        self.root, self.get = root, get

    @cached_property
    def file(self) -> Path:
        """The training file."""
        return _find(self.root, ("wiki.train.tokens", "wiki.train.raw", "train.txt"), self.get)

    def texts(self) -> Iterator[str]:
        """The lines that are not empty, stripped."""
        return filter(None, self.lines())

    def lines(self) -> Iterator[str]:
        """All lines, stripped; a document ends at an empty line."""
        return map(str.strip, _lines(self.file))

    def describe(self) -> str:
        return str(self.file)


def ag_news(root: str, get: str) -> Iterator[LabelRow]:
    """``train.csv`` and ``test.csv`` with class, title and text.

    If there is only the test file, one text in five is tested.
    """
    test = _find(root, ("test.csv",), get)
    train = next(iter(sorted(Path(root).rglob("train.csv"))), None)
    for file in filter(None, (train, test)):
        for row in (table := csv.reader(_lines(file), strict=True)):
            if len(row) != 3:
                raise Unusable(f"{file} has {len(row)} cells in line {table.line_num}, and needs 3")
            topic, title, body = row
            if topic in TOPICS:  # the first line may be column names
                text = f"{title} {body}"
                yield LabelRow(text, TOPICS[topic], hashed(text) if train is None else file == test)


def sst2(root: str, get: str) -> Iterator[LabelRow]:
    """``train.tsv`` and ``dev.tsv``, columns ``sentence`` (or ``content``) and ``label``."""
    for name in ("train.tsv", "dev.tsv"):
        file = _find(root, (name,), get)
        rows = csv.DictReader(_lines(file), delimiter="\t", quoting=csv.QUOTE_NONE)
        columns = set(rows.fieldnames or ())
        there = "label" in columns and columns & {"sentence", "content"}
        demand(there, str(file), "columns sentence and label", get)
        text = "sentence" if "sentence" in columns else "content"
        for row in rows:
            if None in row or None in row.values():
                raise Unusable(f"{file} has too many or too few cells in line {rows.line_num}")
            yield LabelRow(row[text].strip(), row["label"], name == "dev.tsv")


def trec(root: str, get: str) -> Iterator[LabelRow]:
    """Lines "COARSE:fine question", Latin-1; the label is the coarse class, one of six."""
    for names in (("train.txt", "train_5500.label"), ("test.txt", "TREC_10.label")):
        for line in _lines(_find(root, names, get), "latin-1"):
            kind, _, question = line.strip().partition(" ")
            yield LabelRow(question, kind.partition(":")[0], names[0] == "test.txt")


def subjectivity(root: str, get: str) -> Iterator[LabelRow]:
    """One sentence a line, Latin-1, a file for each class; every tenth line is tested."""
    for label, name in (("objective", "plot.tok.gt9.5000"), ("subjective", "quote.tok.gt9.5000")):
        for number, line in enumerate(_lines(_find(root, (name,), get), "latin-1")):
            yield LabelRow(line.strip(), label, number % 10 == 0)


_READERS: dict[str, Callable[[str, str], Iterator[LabelRow]]] = {
    "ag_news": ag_news,
    "sst2": sst2,
    "trec": trec,
    "subjectivity": subjectivity,
}


def _find(root: str, names: tuple[str, ...], get: str) -> Path:
    """The first file of one of these names in a folder or below it."""
    found = [path for name in names for path in sorted(Path(root).rglob(name))]
    demand(found, root, f"{' or '.join(names)} in it or below", get)
    return found[0]


def _lines(file: Path, encoding: str = "utf-8-sig") -> Iterator[str]:
    try:
        with file.open(encoding=encoding, newline="") as lines:
            yield from lines
    except (OSError, UnicodeDecodeError) as error:
        rule = f"cannot be read ({error})"
        raise ConfigError("data.root", file, rule, "get the file again") from None
