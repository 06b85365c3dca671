"""A mistake in the table of labels is told before any file is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from d2v_pretrain.errors import ConfigError
from datamodules.datasets import audio_folder, text_folder


@pytest.mark.parametrize("module", [audio_folder, text_folder])
@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"label_column": "digt"}, "must have a column 'digt'; it has file, digit, speaker"),
        ({"split_column": "spkr"}, "must have a column 'spkr'"),
        ({"test_values": ["nobody"]}, "must leave some rows to train on and some to test"),
        ({"labels": "nowhere.tsv"}, "data.labels=nowhere.tsv cannot be read"),
    ],
)
def test_before_any_file(
    module: Any,
    changed: dict[str, Any],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = ["file\tdigit\tspeaker", "a.wav\t1\ttheo", "b.wav\t2\tlucas"]
    (tmp_path / "labels.tsv").write_text("\n".join(rows))

    def scan(*_: Any) -> None:
        raise AssertionError("the files are scanned")

    monkeypatch.setattr(module, "scan", scan)
    settings: dict[str, Any] = {
        "labels": str(tmp_path / "labels.tsv"),
        "label_column": "digit",
        "split_column": "speaker",
        "test_values": ["theo"],
    } | changed
    if module is audio_folder:
        data: Any = audio_folder.AudioFolder(str(tmp_path), 0.1, 100.0, 0.1, None, **settings)
    else:
        data = text_folder.TextFolder(str(tmp_path), 0.1, None, text_column="file", **settings)
    with pytest.raises(ConfigError) as found:
        data.files  # noqa: B018
    assert sentence in str(found.value)
