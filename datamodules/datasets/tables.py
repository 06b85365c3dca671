"""read_table(): the rows of a table of labels, whatever program has written it."""

from __future__ import annotations

import codecs
import csv
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from d2v_pretrain.errors import ConfigError
from datamodules.datasets.unusable import Unusable, reading

_MARKS = {  # byte order marks, the longer ones first
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_SEPARATORS = ("\t", ",", ";", "|")
Row = tuple[int, list[str]]  # number of its first line, and its cells


def read_table(path: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table with a header, each as column -> cell; rows without any cell are left
    out.

    The text is UTF-8, or what its byte order mark says. Cells are separated by commas (``.csv``) or
    tabs, or by that one of ``, ; |`` and tab at which the header has all columns. Cells may be
    quoted; in a table with tabs quotes count only if the names in its header are quoted, because
    the quotes of texts need not be in pairs.

    Args:
        path: of the file.
        columns: that are needed.

    Raises:
        ConfigError: if the table cannot be read, a column is missing or there twice, or a row has
            more or fewer cells than the header. It names the line.
    """
    try:
        with reading("cannot be read"):
            text = _text(Path(path).read_bytes())
            rows = _rows(path, text, columns)
    except Unusable as error:
        raise ConfigError("data.labels", path, str(error), "mend it, or give another") from None
    header = rows[0][1] if rows else []
    while header and not header[-1]:  # Excel ends lines with separators
        header.pop()
    there = f"it has {', '.join(header) or 'no rows'}"
    for column in columns:
        if header.count(column) != 1:
            rule = f"must have {'a' if column not in header else 'only one'} column {column!r}"
            raise ConfigError("data.labels", path, rule, there)
    for line, cells in rows[1:]:
        if len(cells) < len(header) or any(cells[len(header) :]):
            rule = f"has {len(cells)} cells in line {line}, and its header {len(header)}"
            remedy = "complete the row, or put quotes around a cell that holds the separator"
            raise ConfigError("data.labels", path, rule, remedy)
    _tell_of_long(path, tuple(line for line, cells in rows if any("\n" in x for x in cells)))
    return [dict(zip(header, cells, strict=False)) for _, cells in rows[1:]]


def _text(data: bytes) -> str:
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    return data.decode(encoding)


def _rows(path: str, text: str, columns: Sequence[str]) -> list[Row]:
    """All rows, the header first, by the first separator at which the header has the columns."""
    usual = "," if path.lower().endswith(".csv") else "\t"
    for separator in (usual, *(other for other in _SEPARATORS if other != usual)):
        with suppress(Unusable):  # the quotes of another separator
            header = next(_parsed(text, separator), (0, []))[1]
            if set(columns) <= {*header}:
                break
    else:
        separator = usual
    return list(_parsed(text, separator))


def _parsed(text: str, separator: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # the table is in memory: a cell cannot be larger
    head = text.lstrip().partition("\n")[0].strip()
    quoted = separator != "\t" or (head.startswith('"') and head.endswith('"'))
    rows = csv.reader(
        io.StringIO(text, ""),
        delimiter=separator,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        strict=True,
    )
    line, names = 1, True
    try:
        for cells in rows:
            if any(map(str.strip, cells)):
                yield line, ([cell.strip() for cell in cells] if names else cells)
                names = False
            line = rows.line_num + 1
    except csv.Error as error:
        raise Unusable(
            f"has a quote that is not closed or not doubled from line {line} on ({error})"
        ) from None


@cache
def _tell_of_long(path: str, lines: tuple[int, ...]) -> None:
    """Say once how many rows have several lines: a quote too many would join rows."""
    if lines:
        rest = f"{len(lines):,} rows of several lines, the first in line {lines[0]}"
        print(f"data.labels={path}: has {rest}", file=sys.stderr)
