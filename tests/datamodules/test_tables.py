"""Tables of labels as Excel, LibreOffice, pandas and hands write them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from d2v_pretrain.errors import ConfigError
from datamodules.datasets.labels import Table, labelled
from tests.datamodules.test_folder import audio, tone

COLUMNS = ["file", "label", "split"]
ROWS = [
    [f"{i}, take.wav" if i == 5 else f"{i}.wav", f"c{i % 2}", "test" if i % 4 == 3 else "train"]
    for i in range(40)
]


def table(path: Path, content: bytes | str, key: str = "file") -> Table:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Table(str(path), key, "label", "split", ["test"])


def written(separator: str, quoting: int = csv.QUOTE_MINIMAL, end: str = "\n") -> str:
    made = io.StringIO(newline="")
    csv.writer(made, delimiter=separator, quoting=quoting, lineterminator=end).writerows(
        [COLUMNS, *ROWS]
    )
    return made.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", [".csv ,", ".csv ;", ".csv \t", ".tsv \t", ".tsv ,", ".txt |"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_every_row_is_read(tmp_path: Path, encoding: str, name: str, quoting: int) -> None:
    ending, separator = name.split(" ")
    content = written(separator, quoting, "\r\n").encode(encoding)
    rows = table(tmp_path / f"labels{ending}", content).rows()
    expected = [(file, label, split == "test") for file, label, split in ROWS]
    assert [(row.key, row.label, row.test) for row in rows] == expected


@pytest.mark.parametrize(
    "change, line, sentence",
    [
        (lambda rows: rows.__setitem__(8, "7.wav"), 9, "has 1 cells in line 9, and its header 3"),
        (lambda rows: rows.__setitem__(8, "a,7.wav,c1,test"), 9, "has 4 cells in line 9"),
        (lambda rows: rows.__setitem__(8, '"7.wav,c1,test'), 9, "quote that is not closed"),
        (lambda rows: rows.__setitem__(8, '"7"x.wav,c1,test'), 9, "quote that is not closed"),
        (lambda rows: rows.__setitem__(0, "name,label,split"), 1, "must have a column 'file'"),
        (lambda rows: rows.__setitem__(0, "file,label,split,label"), 1, "must have only one"),
    ],
)
def test_a_wrong_row_is_told_with_its_line(
    tmp_path: Path, change: object, line: int, sentence: str
) -> None:
    rows = [",".join(row) for row in [COLUMNS, *ROWS] if "take" not in row[0]]
    change(rows)  # type: ignore[operator]
    with pytest.raises(ConfigError) as error:
        table(tmp_path / "labels.csv", "\n".join(rows)).rows()
    assert sentence in str(error.value) and "labels.csv" in str(error.value)
    assert "quote" not in sentence or f"line {line} " in str(error.value)


def test_blank_rows_and_trailing_separators_are_no_rows(tmp_path: Path) -> None:
    content = written(",", csv.QUOTE_ALL).replace("\n", ",,\n", 3) + "\n,,\n , ,\n\n"
    assert len(table(tmp_path / "labels.csv", content).rows()) == 40


def test_documents_as_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "word, " * 100_000 + "\nsecond line"
    rows = [*ROWS, [long, "c0", "test"]]
    made = io.StringIO(newline="")
    csv.writer(made).writerows([COLUMNS, *rows])
    found = table(tmp_path / "labels.csv", made.getvalue()).rows()
    assert len(found) == 41 and found[-1].key == long
    assert "has 1 rows of several lines, the first in line 42" in capsys.readouterr().err


def test_quotes_in_texts_with_tabs_are_characters(tmp_path: Path) -> None:
    texts = ['"I know," he said', 'a 12" record', '"', "plain"]
    rows = [f"{text}\tc{i % 2}\t{'test' if i > 1 else 'train'}" for i, text in enumerate(texts)]
    content = "\n".join(["\t".join(COLUMNS), *rows])
    assert [row.key for row in table(tmp_path / "labels.tsv", content).rows()] == texts


def test_files_are_found_by_quoted_names_and_missing_ones_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    for i in range(20):
        tone(root / f"{i}, take.wav", seconds=0.3)
    rows = [f'"{i}, take.wav"\tc{i % 2}\t{"test" if i % 4 == 3 else "train"}' for i in range(24)]
    path = tmp_path / "labels.tsv"
    path.write_text("\n".join(["file\tlabel\tsplit", *rows]))
    columns = {"label_column": "label", "split_column": "split", "test_values": ["test"]}
    dataset = audio(root, labels=str(path), **columns)
    assert len(dataset) == 15 and len(dataset.labelled_files) == 20
    assert "4 of 24 rows name no usable file" in capsys.readouterr().err
    assert labelled("x", [row for _, row in dataset.labelled_files], str, "").classes == 2
