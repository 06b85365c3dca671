"""TextFolder: one or many UTF-8 text files; every line that is not empty is an item."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import BinaryIO

from datamodules.datasets.base import TextDataset
from datamodules.datasets.labels import Table, labelled
from datamodules.datasets.probe_tasks import Labelled
from datamodules.datasets.scan import Skipped, scan
from datamodules.datasets.unusable import Unusable, reading

ENDINGS = (".txt",)
_LONGEST = 100_000_000  # characters of a line; it is kept in memory whole


class TextFolder(TextDataset):
    """The lines of text files, in the order of the files' names.

    Args:
        root: folder, searched to any depth, or one file.
        max_bad_share: see ``datamodules.datasets.scan.scan``.
        skipped_path: where skipped files are listed, or None.
        labels: table of labelled texts for the probe, or None; it is not pretrained on.
        text_column, label_column, split_column, test_values: see
            ``datamodules.datasets.labels.Table``; only with ``labels``.
    """

    def __init__(
        self,
        root: str,
        max_bad_share: float,
        skipped_path: str | None,
        labels: str | None,
        text_column: str,
        label_column: str | None,
        split_column: str | None,
        test_values: Sequence[str | int],
    ) -> None:
        self.root, self.max_bad_share = root, max_bad_share
        self.labels = (
            Table(labels, text_column, label_column, split_column, test_values) if labels else None
        )
        self.skipped = Skipped(skipped_path)

    @cached_property
    def files(self) -> list[str]:
        """The usable files."""
        if self.labels is not None:
            self.labels.rows()  # a mistake in the table need not wait for the scan of all files
        ignore = [self.labels.path] if self.labels else []
        return list(scan(self.root, ENDINGS, check, self.skipped, self.max_bad_share, ignore))

    def texts(self) -> Iterator[str]:
        """The lines that are not empty, stripped."""
        return filter(None, self.lines())

    def lines(self) -> Iterator[str]:
        """All lines, stripped; a document ends at an empty line or with its file."""
        for file in self.files:
            with open(file, encoding="utf-8-sig") as lines:
                yield from map(str.strip, lines)
            yield ""

    def describe(self) -> str:
        return f"{self.root}: {len(self.files):,} text files"

    def labelled(self) -> list[Labelled[str]]:
        """The classification by the label column of the table; [] without a table."""
        if self.labels is None:
            return []
        return [labelled(str(self.labels.label), self.labels.rows(), str, self.labels.note())]


def check(file: str) -> None:
    """Read a text file to its end, because a byte that is not UTF-8 would stop the run later.

    Raises:
        Unusable: if it is not UTF-8, binary or empty, or has a line of more than 100,000,000
            characters.
    """
    with open(file, "rb") as content:
        if _is_blank(content):
            raise Unusable("empty")


def decode(data: bytes) -> str:
    """The text in the bytes of a file.

    Raises:
        Unusable: as ``check``, but not for an empty text.
    """
    _is_blank(io.BytesIO(data))
    return data.decode("utf-8-sig")


def lines_of(text: str) -> Iterator[str]:
    """The lines of a text, stripped. As in files, a line ends with a line feed, a carriage return,
    or both, and with no other character of Unicode."""
    return map(str.strip, io.StringIO(text, None))


def _is_blank(content: BinaryIO) -> bool:
    """Whether there is nothing but space. Raises ``Unusable`` as ``check``."""
    blank = True
    with reading("cannot be read"), io.TextIOWrapper(content, "utf-8-sig") as text:
        try:
            while line := text.readline(_LONGEST):
                blank = blank and not line.strip()
                if "\0" in line:
                    raise Unusable("binary, not text")
                if len(line) == _LONGEST:
                    raise Unusable(f"has a line of more than {_LONGEST:,} characters: divide it")
        except UnicodeDecodeError as error:
            raise Unusable(f"not UTF-8 ({error.reason} at byte {error.start})") from None
    return blank
