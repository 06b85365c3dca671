"""atomic() against a reader at the moment of failure, and what it leaves in the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from d2v_pretrain.atomic_files import atomic


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
