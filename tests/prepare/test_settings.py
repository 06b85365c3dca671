"""The command line: words, mistakes in them, help."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from d2v_pretrain.config.options import read
from d2v_pretrain.errors import ConfigError
from datamodules.prepare.__main__ import main
from datamodules.prepare.settings import COMMANDS, Audio, Text, Vision
from tests.prepare.commands import said


def test_words_become_values_of_their_types() -> None:
    text = read(
        Text,
        [
            "input=a=b",
            "output=o",
            "block=64",
            "shard_mb=0.5",
            "break_mode=complete_doc",
            "tokenizer=null",
        ],
    )
    assert (text.input, text.block, text.shard_mb, text.break_mode) == (
        "a=b",
        64,
        0.5,
        "complete_doc",
    )
    assert text.tokenizer is None and text.vocab_size == 50_265
    assert read(Vision, ["input=i", "output=o", "short_side=256"]).short_side == 256


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        (
            "encod=flac",
            r"encod=flac is not an option \(did you mean encode\?\); the options are input, ",
        ),
        ("encode", r"encode= has no value; type encode=…"),
        ("encode=mp3", r"encode=mp3 must be one of keep, flac"),
        ("seed=x", r"seed=x must be a whole number"),
        ("max_seconds=long", r"max_seconds=long must be a number"),
        ("shard_mb=0", r"shard_mb=0 must be at least 1e-06"),
        ("shard_mb=nan", r"shard_mb=nan must be at least"),
        ("processes=0", r"processes=0 must be at least 1"),
        ("output=", r"output= must not be empty"),
        (
            "my/data",
            r"option=my/data is not of the form key=value; type input=my/data or output=my/data",
        ),
    ],
)
def test_a_wrong_word_is_told(word: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read(Audio, ["input=i", "output=o", word])


def test_a_missing_setting_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audio", "input=x"]) == 2
    assert "output= must be given: folder of the shards" in said(capsys)


def test_an_unknown_command_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vison", "input=x"]) == 2
    assert (
        "command=vison is not a command (did you mean vision?); type one of audio, vision"
        in said(capsys)
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_every_setting(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    page = capsys.readouterr().out
    for one in fields(COMMANDS[name]):
        assert f"\n  {one.name}=" in page
    assert f"d2v-pretrain prepare {name} input=" in page


def test_a_folder_that_is_not_there_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("audio", "vision", "text"):
        assert main([name, f"input={tmp_path / 'no'}", f"output={tmp_path / 'out'}"]) == 2
        told = said(capsys)
        assert "input=" in told and "is not a folder; give the folder that holds the data" in told
        assert "data.root" not in told
    assert main(["verify", f"input={tmp_path}"]) == 2
    assert "has no .tar file in it" in said(capsys)


@pytest.mark.parametrize("command", ["audio", "vision", "text"])
def test_an_output_that_is_an_address_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    """Before anything is read; a folder called s3: is not made."""
    monkeypatch.chdir(tmp_path)
    assert main([command, "input=nowhere", "output=s3://bucket/set"]) == 2
    assert "output=s3://bucket/set is an address, and" in said(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["index", "verify"])
def test_an_input_that_is_an_address_is_refused(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert main([command, "input=s3://bucket/set"]) == 2
    assert "input=s3://bucket/set is an address" in said(capsys)
