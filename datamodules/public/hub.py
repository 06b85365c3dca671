"""HubTexts: texts of Hugging Face `datasets` (an optional package), by name or from a folder."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from d2v_pretrain.errors import ConfigError
from datamodules.datasets.base import TextDataset
from datamodules.datasets.labels import LabelRow, labelled
from datamodules.datasets.probe_tasks import Labelled
from datamodules.datasets.text_folder import lines_of


class HubTexts(TextDataset):
    """The lines of a text column that are not empty.

    Args:
        root: name on the hub ("wikitext"), a folder that ``save_to_disk`` wrote, or one that
            ``load_dataset`` can read.
        config: of the dataset ("wikitext-103-raw-v1"), or None.
        split: name of the split to pretrain on.
        text_column: column of the text.
        label_column: column of the class, for a probe; None for no probe.
        test_split: name of the split that the probe tests on; not read without ``label_column``.
        download: whether to ask the hub; data that were downloaded before are read without it.
    """

    def __init__(
        self,
        root: str,
        config: str | None,
        split: str,
        text_column: str,
        label_column: str | None,
        test_split: str,
        download: bool,
    ) -> None:
        self.root, self.config, self.split = root, config, split
        self.text, self.label = text_column, label_column
        self.test_split, self.download = test_split, download

    def _load(self, split: str) -> Any:
        """One split, memory-mapped."""
        try:
            import datasets
        except ImportError:
            rule, remedy = "needs the package datasets", "type pip install -e '.[datasets]'"
            raise ConfigError("data", "hf", rule, remedy) from None
        try:
            if (Path(self.root) / "dataset_dict.json").is_file():
                return datasets.load_from_disk(self.root)[split]
            asked = datasets.DownloadConfig(local_files_only=not self.download)
            return datasets.load_dataset(self.root, self.config, split=split, download_config=asked)
        except (OSError, ValueError, KeyError) as error:  # names, splits, no network
            remedy = (
                "check data.root, data.config and data.split; a name on the hub needs "
                "data.download=true once"
            )
            rule = f"cannot be loaded ({error})".replace("\n", " ")
            raise ConfigError("data.root", self.root, rule, remedy) from None

    def _column(self, rows: Any, key: str, column: str) -> Any:
        if column not in rows.column_names:
            there = f"it has {', '.join(rows.column_names)}"
            raise ConfigError(key, column, f"is no column of {self.root}", there)
        return rows[column]

    @cached_property
    def rows(self) -> Any:
        """The split to pretrain on."""
        return self._load(self.split)

    def texts(self) -> Iterator[str]:
        """The lines that are not empty, stripped."""
        return filter(None, self.lines())

    def lines(self) -> Iterator[str]:
        """All lines, stripped; a document ends at an empty line or with its row."""
        for text in self._column(self.rows, "data.text_column", self.text):
            yield from lines_of(text)
            yield ""

    def describe(self) -> str:
        return f"{self.root}, {self.split}: {len(self.rows):,} texts"

    def labelled(self) -> list[Labelled[str]]:
        """The column of classes, trained on one split and tested on the other; [] without it."""
        if self.label is None:
            return []
        found = [
            LabelRow(text, str(label), rows is not self.rows)
            for rows in (self.rows, self._load(self.test_split))
            for text, label in zip(
                self._column(rows, "data.text_column", self.text),
                self._column(rows, "data.label_column", self.label),
                strict=True,
            )
        ]
        return [labelled(self.label, found, str, f"tested on the split {self.test_split}")]
