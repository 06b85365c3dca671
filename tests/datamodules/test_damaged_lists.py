"""The list of skipped files and a trained tokenizer after a kill, and on a full disk."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from d2v_pretrain.errors import ConfigError
from datamodules.datasets.scan import Skipped
from datamodules.synthetic.text import SyntheticText
from datamodules.transforms.text import TextTransform

WHOLE = [{"file": f"{n}.wav", "reason": "cut", "at": "training"} for n in range(3)]
LINES = [json.dumps(row) + "\n" for row in WHOLE]


@pytest.mark.parametrize(
    "text", ["".join([*LINES, '{"file": "3.w']), "".join([LINES[0], "\0\0\n", *LINES[1:], "[]\n"])]
)
def test_damaged_lines_are_left_out_and_told(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "skipped.jsonl"
    path.write_text(text)
    skipped = Skipped(str(path))
    skipped.start({"0.wav": "empty"})
    assert f"{path} had" in capsys.readouterr().err
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    files = [row["file"] for row in rows]
    assert files == ["0.wav", "1.wav", "2.wav"] and rows[0]["at"] == "start"
    assert skipped.known == {"1.wav", "2.wav"}


def test_a_full_disk_is_one_sentence_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "skipped.jsonl"
    skipped = Skipped(str(path))
    skipped.start({"a.wav": "empty"})
    before, limit = path.read_text(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 9, limit[1]))
    try:
        with pytest.raises(ConfigError, match=rf"{path} cannot be written \(File too large\)"):
            skipped.add("b.wav", "cut")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_text() == before
    Skipped(str(path)).add("b.wav", "cut")
    assert len(path.read_text().splitlines()) == 2


def test_a_damaged_tokenizer_is_trained_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "run" / "tokenizer.json"

    def made() -> TextTransform:
        return TextTransform(SyntheticText(5, 1, 1, 0), 16, 400, None, str(cache))

    ids, whole = made().tokens, cache.read_bytes()
    cache.write_bytes(whole[: len(whole) // 2])
    assert (made().tokens == ids).all() and cache.read_bytes() == whole
    assert (cache.parent / "tokenizer.json.damaged").exists()
    assert "trained again" in capsys.readouterr().err
