"""Labels of a folder: a table with columns, or class sub-folders; a split that the table gives or a
hash makes."""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from d2v_pretrain.errors import ConfigError
from datamodules.datasets.probe_tasks import Labelled, Split

Raw = TypeVar("Raw")
_TRAIN, _TEST = (
    4000,
    1000,
)  # items of a probe at most: it must not take longer than the training of a small run
_TESTS = {"test", "val", "valid", "validation", "dev"}  # folder names
_LEAST = 5  # labels a class that few-shot needs


@dataclass(frozen=True)
class Item:
    """One row: ``key`` the file or the text, its class by name, and whether it is only tested."""

    key: str
    label: str
    test: bool


@dataclass(frozen=True)
class Table:
    """Where labels come from: a file of columns, tab- or (``.csv``) comma-separated, with a header.

    Args:
        path: of the file.
        key: column of the file name, relative to the data's root, or of the text.
        label: column of the class.
        split: column that tells test items, or None: one in five, by a hash of the key.
        test_values: what ``split`` holds for test items (``["test"]``, or one speaker of
            ``speaker``).
    """

    path: str
    key: str
    label: str | None
    split: str | None
    test_values: Sequence[str | int]

    def items(self) -> list[Item]:
        """All rows.

        Raises:
            ConfigError: if the file or a column is missing, or no row is a test row, or all are.
        """
        rows = self._rows()
        there = ", ".join(rows[0]) if rows else "no rows"
        if self.label is None:
            raise ConfigError(
                "data.label_column", None, f"must name a column of {self.path}", f"it has {there}"
            )
        for column in filter(None, (self.key, self.label, self.split)):
            if not rows or column not in rows[0]:
                raise ConfigError(
                    "data.labels", self.path, f"must have a column {column!r}", f"it has {there}"
                )
        items = [Item(row[self.key], row[self.label], self._tested(row)) for row in rows]
        if len({item.test for item in items}) < 2:
            rule = f"must leave some rows to train on and some to test, by column {self.split!r}"
            raise ConfigError(
                "data.test_values", list(self.test_values), rule, "name some of its values"
            )
        return items

    def note(self) -> str:
        """How the items are divided, for the printed table."""
        if self.split is None:
            return "tested on 1 in 5"
        return f"tested where {self.split} is {', '.join(map(str, self.test_values))}"

    def _tested(self, row: dict[str, str]) -> bool:
        return (
            row[self.split] in map(str, self.test_values) if self.split else hashed(row[self.key])
        )

    def _rows(self) -> list[dict[str, str]]:
        try:
            with Path(self.path).open(encoding="utf-8", newline="") as file:
                if self.path.lower().endswith(".csv"):
                    return list(csv.DictReader(file))
                return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                "data.labels", self.path, f"cannot be read ({error})", "give a UTF-8 table"
            ) from None


def hashed(key: str) -> bool:
    """Whether a key is one of the fifth that is tested: the same on every machine, whatever else is
    there."""
    return hashlib.sha1(key.encode()).digest()[0] < 256 // 5


def from_folders(names: Sequence[str]) -> list[Item]:
    """Classes from paths relative to a root: ``train|test/<class>/…`` or ``<class>/…``; [] where
    they are none.

    Folders are taken for classes if every file is in one, there are at least two, and each has
    enough for few-shot."""
    parts = [name.split(os.sep) for name in names]
    divided = (
        {p[0] for p in parts} >= {"train"}
        and {p[0] for p in parts} & _TESTS
        and all(len(p) > 2 for p in parts)
    )
    if not divided and not all(len(p) == 2 for p in parts):
        return []
    items = [
        Item(name, p[1], p[0] in _TESTS) if divided else Item(name, p[0], hashed(name))
        for name, p in zip(names, parts, strict=True)
    ]
    seen = Counter(item.label for item in items if not item.test)
    classes = {item.label for item in items}
    return items if len(classes) > 1 and all(seen[label] >= _LEAST for label in classes) else []


def labelled(
    name: str, items: Sequence[Item], read: Callable[[str], Raw | None], note: str
) -> Labelled[Raw]:
    """The probe task of labelled items, at most 4,000 to train on and 1,000 to test, taken evenly.

    Args:
        name: of the task.
        items: all rows.
        read: key -> item as the dataset stores it, or None.
        note: for the printed table.
    """
    classes = sorted({item.label for item in items})

    def split(test: bool, most: int) -> Split[Raw]:
        chosen = sorted((item for item in items if item.test is test), key=_hash)[:most]
        labels = np.array([classes.index(item.label) for item in chosen])
        return Split(lambda i: read(chosen[i].key), labels)

    return Labelled(name, split(False, _TRAIN), split(True, _TEST), len(classes), note)


def _hash(item: Item) -> bytes:
    return hashlib.sha1(item.key.encode()).digest()
