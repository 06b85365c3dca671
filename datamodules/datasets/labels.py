"""Labels of a folder, from a table or from class sub-folders, and their test split."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from d2v_pretrain.errors import ConfigError
from datamodules.datasets.probe_tasks import Item, Labelled, Split
from datamodules.datasets.tables import read_table

# Largest number of items of a probe: it must not take longer than the training of a small run.
_TRAIN, _TEST = 4000, 1000
_TEST_FOLDERS = {"test", "val", "valid", "validation", "dev"}
_LEAST = 5  # labelled items of each class that a few-shot probe needs


@dataclass(frozen=True)
class LabelRow:
    """A labelled item.

    Args:
        key: file, or the text itself.
        label: name of its class.
        test: whether it is a test item.
    """

    key: str
    label: str
    test: bool


@dataclass(frozen=True)
class Table:
    """A file with labels, see ``datamodules.datasets.tables.read_table``.

    Args:
        path: of the file.
        key: column of the file name, relative to the data's root, or of the text.
        label: column of the class.
        split: column that tells test items from training items. None tests on one item in five,
            chosen by a hash of the key.
        test_values: values of the column ``split`` in test rows, such as ``["test"]``, or the name
            of a speaker if the column is ``speaker``.
    """

    path: str
    key: str
    label: str | None
    split: str | None
    test_values: Sequence[str | int]

    def rows(self) -> list[LabelRow]:
        """All rows.

        Raises:
            ConfigError: see ``read_table``; also if no row is a test row, or all are.
        """
        if self.label is None:
            rule = f"must name a column of {self.path}"
            raise ConfigError("data.label_column", None, rule, "such as label")
        columns = [self.key, self.label, *([self.split] if self.split else [])]
        values = set(map(str, self.test_values))
        rows = [
            LabelRow(
                row[self.key],
                row[self.label].strip(),
                row[self.split].strip() in values if self.split else hashed(row[self.key]),
            )
            for row in read_table(self.path, columns)
        ]
        if len({row.test for row in rows}) < 2:
            rule = f"must leave some rows to train on and some to test, by column {self.split!r}"
            remedy = "name some of its values"
            raise ConfigError("data.test_values", list(self.test_values), rule, remedy)
        return rows

    def note(self) -> str:
        """How train and test are divided, for the printed table."""
        if self.split is None:
            return "tested on 1 in 5"
        return f"tested where {self.split} is {', '.join(map(str, self.test_values))}"


def hashed(key: str) -> bool:
    """Whether an item with this key is among the fifth that a probe tests on.

    The answer is the same on every machine, whatever other keys there are.
    """
    return _digest(key)[0] < 256 // 5


def _digest(key: str) -> bytes:
    return hashlib.sha1(key.encode(errors="surrogateescape")).digest()  # names need not be UTF-8


def from_folders(names: Sequence[str]) -> list[LabelRow]:
    """Labels from paths relative to a root, ``train|test/<class>/...`` or ``<class>/...``.

    Folders are taken for classes if every file is in one, there are at least two, and each has
    enough files for a few-shot probe; otherwise the result is [].
    """
    parts = [name.split(os.sep) for name in names]
    tops = {part[0] for part in parts}
    divided = "train" in tops and tops & _TEST_FOLDERS and all(len(part) > 2 for part in parts)
    if not divided and not all(len(part) == 2 for part in parts):
        return []
    rows = [
        LabelRow(name, part[1], part[0] in _TEST_FOLDERS)
        if divided
        else LabelRow(name, part[0], hashed(name))
        for name, part in zip(names, parts, strict=True)
    ]
    seen = Counter(row.label for row in rows if not row.test)
    classes = {row.label for row in rows}
    return rows if len(classes) > 1 and all(seen[label] >= _LEAST for label in classes) else []


def labelled(
    name: str, rows: Sequence[LabelRow], read: Callable[[str], Item | None], note: str
) -> Labelled[Item]:
    """The probe task of labelled items, at most 4,000 to train on and 1,000 to test.

    If there are more, a hash of their keys chooses those that are used.

    Args:
        name: of the task.
        rows: all labelled items.
        read: key -> item as the dataset stores it, or None if it cannot be read.
        note: remark below the printed table.
    """
    classes = sorted({row.label for row in rows})

    def split(test: bool, most: int) -> Split[Item]:
        chosen = [row for row in rows if row.test is test]
        chosen.sort(key=lambda row: _digest(row.key))
        chosen = chosen[:most]
        labels = np.array([classes.index(row.label) for row in chosen])
        return Split(lambda i: read(chosen[i].key), labels)

    return Labelled(name, split(False, _TRAIN), split(True, _TEST), len(classes), note)
