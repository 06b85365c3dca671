"""destinations.py: a folder that cannot be written, and Weights & Biases without a login."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.training import destinations
from d2v_pretrain.training.destinations import check_folder, check_logger

WANDB = {"_target_": "lightning.pytorch.loggers.WandbLogger", "project": "d2v"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder in which nobody is logged in."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_folder_that_can_be_made_stays_unmade(tmp_path: Path) -> None:
    check_folder(tmp_path / "runs" / "deep" / "down")
    (tmp_path / "there" / "checkpoints").mkdir(parents=True)
    check_folder(tmp_path / "there")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "there",
        "there/checkpoints",
    ]


def test_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_folder(Path("runs/a"))
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("a file where the folder should be")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "at all")
    for wrong in ("file", "file/run", "file/run/deep", "run", "dangling"):
        with pytest.raises(ConfigError, match=r"folder=.* cannot be written \(N"):
            check_folder(tmp_path / wrong)

    def read_only(*_: Any, dir: Path, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    with pytest.raises(ConfigError, match="Read-only file system"):
        check_folder(tmp_path / "new")


def test_wandb_without_a_login_is_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"logger=wandb needs an account.*WANDB_MODE=offline"):
        check_logger(WANDB, {})
    with pytest.raises(ConfigError, match="nobody is logged in"):
        check_logger(WANDB, {"WANDB_MODE": "online", "WANDB_API_KEY": ""})


@pytest.mark.parametrize(
    "environment",
    [
        {"WANDB_MODE": "offline"},
        {"WANDB_MODE": "disabled"},
        {"WANDB_API_KEY": "x" * 40},
        {"WANDB_IDENTITY_TOKEN_FILE": "token"},
    ],
)
def test_wandb_that_needs_no_login_or_has_one(home: Path, environment: dict[str, str]) -> None:
    check_logger(WANDB, environment)


def test_wandb_reads_what_its_login_writes(home: Path) -> None:
    line = "machine {} login user password secret\n"
    (home / ".netrc").write_text(line.format("api.wandb.ai"))
    check_logger(WANDB, {})
    own = {"WANDB_BASE_URL": "https://wandb.example.org:8080"}
    with pytest.raises(ConfigError, match="nobody is logged in"):
        check_logger(WANDB, own)
    (home / "elsewhere").write_text(line.format("wandb.example.org"))
    check_logger(WANDB, own | {"NETRC": str(home / "elsewhere")})
    (home / ".netrc").write_text("machine api.wandb.ai {broken")
    with pytest.raises(ConfigError, match="nobody is logged in"):
        check_logger(WANDB, {})


def test_other_loggers_and_a_missing_package(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_logger(None, {})
    check_logger({"_target_": "lightning.pytorch.loggers.TensorBoardLogger"}, {})
    check_logger(WANDB | {"offline": True}, {})
    monkeypatch.setattr(destinations, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package wandb, which is not installed"):
        check_logger(WANDB, {"WANDB_MODE": "offline"})
