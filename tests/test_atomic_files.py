"""atomic(), append() and mend() against a failure at any moment, a full disk and a kill."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from d2v_pretrain.atomic_files import append, atomic, json_lines, mend, unwritable


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file.json"
    for text in ("first", "second"):
        with atomic(path) as temporary:
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: a full disk, as the system itself reports it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_names_the_file_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append(path, '{"step": 1}\n')
    with small_files(20), pytest.raises(OSError) as refused:
        append(path, '{"step": 2, "loss": 0.25}\n')  # 8 bytes of it still fit
    assert refused.value.filename == str(path) and path.read_text() == '{"step": 1}\n'
    with small_files(20), pytest.raises(OSError) as refused, atomic(path) as temporary:
        temporary.write_text("x" * 100)
    assert refused.value.filename == str(path) and [*tmp_path.iterdir()] == [path]
    text = str(unwritable(refused.value, path))
    assert text.startswith(f"file={path} cannot be written (File too large); raise the limit")
    append(path, '{"step": 2}\n')
    assert json_lines(path) == ([{"step": 1}, {"step": 2}], {}, "")


@pytest.mark.parametrize(
    ("content", "kept", "aside", "told"),
    [
        (b"", [], "", []),
        (b'{"step": 1}\n{"step": 2}\n', [1, 2], "", []),
        (b'{"step": 1}\n{"step": 9}\n', [1], "", []),
        (b'{"step": 1}\n{"ste', [1], "", ["last line"]),
        (b'{"step": 1}\n{"step": 2}', [1], "", ["last line"]),
        (b'{"step": 1}\n{"st\n{"step": 2}\n', [1, 2], '{"st\n', ["line 2"]),
        (b'{"step": 1}\n\0\0\0\n7\n{"step": 2}\n', [1, 2], "\0\0\0\n7\n", ["line 2", "line 3"]),
        (b'\xff\xfe\n{"step": 1}\n', [1], "\ufffd\ufffd\n", ["line 1"]),
        (b'{"loss": 1}\n{"step": "x"}\n{"step": 1}\n', [1], None, ["lacks", "lacks"]),
        (b"\n\n", [], "\n\n", ["line 1", "line 2"]),
    ],
)
def test_mending_a_file_of_lines(
    tmp_path: Path, content: bytes, kept: list[int], aside: str | None, told: list[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    rows, sentences = mend(path, lambda row: row["step"] <= 5)
    assert [row["step"] for row in rows] == kept
    assert len(sentences) == len(told) and all(a in b for a, b in zip(told, sentences))
    damaged = tmp_path / "metrics.jsonl.damaged"
    if aside is None:
        assert damaged.read_text() == '{"loss": 1}\n{"step": "x"}\n'
    else:
        assert (damaged.read_text() if damaged.exists() else "") == aside
    assert mend(path, lambda row: True) == (rows, []), "whole from now on"
