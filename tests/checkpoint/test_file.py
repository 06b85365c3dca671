"""checkpoint.py: every way a file can be spoiled, real kills in the middle of a write, and
Lightning's own trainer."""

from __future__ import annotations

import os
import pickle
import random
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from d2v_pretrain.checkpoint import file as checkpoint
from d2v_pretrain.checkpoint.lightning import AtomicCheckpointIO
from d2v_pretrain.errors import ConfigError

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:.*LeafSpec.*:FutureWarning"
    ),  # Lightning 2.6 with torch 2.11
    pytest.mark.filterwarnings(
        "ignore:.*multi-threaded.*fork.*:DeprecationWarning"
    ),  # Python 3.12; the child only saves
]


def content(step: int, size: int = 1000) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(step)
    return {
        "global_step": step,
        "state_dict": {
            "weight": torch.randn(size, generator=draw),
            "half": torch.ones(3, dtype=torch.bfloat16),
        },
        "cursor": (1, [2, 3]),
        "note": "é",
        "nothing": None,
        "rate": 0.1,
    }


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    tensors = all(torch.equal(a["state_dict"][k], b["state_dict"][k]) for k in a["state_dict"])
    rest = {k: v for k, v in a.items() if k != "state_dict"} == {
        k: v for k, v in b.items() if k != "state_dict"
    }
    return tensors and rest


def flip(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def test_what_is_written_is_read_by_us_by_torch_and_by_zip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "step=7.ckpt"
    checkpoint.write(content(7), path)
    assert checkpoint.fault(path) is None and checkpoint.step_of(path) == 7
    assert same(checkpoint.read(path), content(7))
    assert same(torch.load(path, weights_only=True), content(7))
    assert zipfile.ZipFile(path).testzip() is None
    assert [file.name for file in path.parent.iterdir()] == ["step=7.ckpt"]


def test_every_flipped_bit_and_every_cut_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "step=1.ckpt"
    checkpoint.write(content(1), path)
    good = path.read_bytes()
    draw = random.Random(0)
    ends = [*range(60), *range(len(good) - 140, len(good))]
    for position in [*ends, *(draw.randrange(len(good)) for _ in range(200))]:
        flip(path, position, draw.randrange(8))
        assert checkpoint.fault(path) is not None, position
        path.write_bytes(good)
    for length in [*range(1, 60), *range(len(good) - 140, len(good)), len(good) // 2]:
        path.write_bytes(good[:length])
        assert "cut short" in (checkpoint.fault(path) or ""), length
    path.write_bytes(good + b"x")
    assert checkpoint.fault(path) is not None


def spoil_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def spoil_flipped(path: Path) -> None:
    flip(path, 2000)


def spoil_empty(path: Path) -> None:
    path.write_bytes(b"")


def spoil_foreign(path: Path) -> None:
    path.write_text("this is a note to myself" * 100)


def spoil_plain_torch(path: Path) -> None:
    torch.save(content(9), path)


def spoil_dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "gone.ckpt")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_truncated, "cut short"),
        (spoil_flipped, "corrupt"),
        (spoil_empty, "is empty"),
        (spoil_foreign, "not written by this program"),
        (spoil_plain_torch, "not written by this program"),
        (spoil_dangling, "does not exist"),
    ],
)
def test_a_spoiled_newest_falls_back_to_the_one_before_and_says_why(
    tmp_path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    for step in (5, 10, 100):
        checkpoint.write(content(step), tmp_path / f"step={step}.ckpt")
    newest = tmp_path / "step=100.ckpt"
    assert checkpoint.newest_valid(tmp_path) == (newest, [])
    spoil(newest)
    path, rejected = checkpoint.newest_valid(tmp_path)
    assert path == tmp_path / "step=10.ckpt"
    assert [file for file, _ in rejected] == [newest] and reason in rejected[0][1]
    with pytest.raises(ConfigError, match=reason):
        checkpoint.read(newest)


def test_newest_is_by_the_step_inside_not_by_name_or_time(tmp_path: Path) -> None:
    checkpoint.write(content(200), tmp_path / "last.ckpt")
    checkpoint.write(content(30), tmp_path / "step=30.ckpt")
    os.utime(tmp_path / "last.ckpt", (0, 0))
    (tmp_path / checkpoint.TEMPORARY).write_bytes(b"left by a kill")
    assert checkpoint.newest_valid(tmp_path) == (tmp_path / "last.ckpt", [])


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    assert checkpoint.newest_valid(tmp_path / "missing") == (None, [])
    (tmp_path / "a.ckpt").touch()
    assert checkpoint.newest_valid(tmp_path) == (None, [(tmp_path / "a.ckpt", "is empty")])


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


def test_a_pickle_that_would_run_code_is_refused_even_with_a_right_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap, path = tmp_path / "trap", tmp_path / "evil.ckpt"
    monkeypatch.setattr(checkpoint, "_strangers", lambda value, where: iter(()))
    checkpoint.write({"global_step": 1, "bomb": Bomb(trap)}, path)
    with pytest.raises(ConfigError, match="could run any code"):
        checkpoint.read(path)
    path.write_bytes(pickle.dumps(Bomb(trap)))
    with pytest.raises(ConfigError, match="not written by this program"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not trap.exists()


@pytest.mark.parametrize(
    "value", [np.float64(1.0), np.zeros(2), Path("a"), signal.SIGTERM, object()]
)
def test_what_could_not_be_read_back_is_not_written(tmp_path: Path, value: Any) -> None:
    with pytest.raises(AssertionError, match=r"checkpoint.callbacks\[1\].score is "):
        checkpoint.write(
            {"global_step": 1, "callbacks": [{}, {"score": value}]}, tmp_path / "a.ckpt"
        )
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_old_file_and_is_told_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    checkpoint.write(content(1), path)
    (tmp_path / checkpoint.TEMPORARY).symlink_to(
        "/dev/full"
    )  # a device on which every write meets a full disk
    with pytest.raises(ConfigError, match=r"no space is left .*GB free.*intact; free some space"):
        checkpoint.write(content(2), path)
    assert (
        same(checkpoint.read(path), content(1))
        and not (tmp_path / checkpoint.TEMPORARY).is_symlink()
    )
    checkpoint.write(content(2), path)
    assert same(checkpoint.read(path), content(2))


def test_a_folder_that_cannot_be_written_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="could not be written"):
        checkpoint.write(content(1), tmp_path / "file" / "a.ckpt")

    def read_only(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(checkpoint, "_write_with_checksum", read_only)
    with pytest.raises(ConfigError, match="file system is read-only"):
        checkpoint.write(content(1), tmp_path / "a.ckpt")


def forked(work: Callable[[], None]) -> int:
    """Run ``work`` in a child process that never returns; its process id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


@pytest.mark.parametrize("moment", ["torch.save", "os.fsync", "os.replace", "os.open"])
def test_killed_at_each_stage_of_a_write(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    checkpoint.write(content(1), path)

    module, name = moment.split(".")
    real_open = os.open

    def die(*arguments: Any) -> Any:
        if name == "open" and not os.path.isdir(arguments[0]):
            return real_open(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr({"torch": torch, "os": os}[module], name, die)
    child = forked(lambda: checkpoint.write(content(2), path))
    _, status = os.waitpid(child, 0)
    monkeypatch.undo()
    assert os.WTERMSIG(status) == signal.SIGKILL
    # The new file counts from the rename on; os.open of the folder comes after it.
    assert same(checkpoint.read(path), content(2 if moment == "os.open" else 1))
    checkpoint.write(content(3), path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_killed_at_random_moments_of_a_write(tmp_path: Path) -> None:
    path, draw = tmp_path / "last.ckpt", random.Random(0)
    checkpoint.write(content(0, 2_000_000), path)

    def save_for_ever() -> None:
        for step in range(1, 10_000):
            checkpoint.write(content(step % 5, 2_000_000), path)

    for _ in range(10):
        child = forked(save_for_ever)
        time.sleep(draw.uniform(0.01, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert checkpoint.newest_valid(tmp_path) == (path, [])
        loaded = checkpoint.read(path)
        assert same(loaded, content(loaded["global_step"], 2_000_000))


class Regression(LightningModule):
    """One weight fitted by one number a step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return (self.layer(batch) - 1).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def trainer(folder: Path, steps: int) -> Trainer:
    saver = ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=2, save_top_k=-1, save_last=True
    )
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    return Trainer(max_steps=steps, callbacks=[saver], plugins=[AtomicCheckpointIO()], **quiet)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable")
def test_lightning_saves_and_resumes_through_the_plugin(tmp_path: Path) -> None:
    loader = DataLoader(
        torch.full((40, 1), 0.5), batch_size=2
    )  # all alike: the order of the data is not at stake here
    whole, first, second = Regression(), Regression(), Regression()
    first.load_state_dict(whole.state_dict())
    trainer(tmp_path / "a", 8).fit(whole, loader)
    trainer(tmp_path / "b", 4).fit(first, loader)
    path, rejected = checkpoint.newest_valid(tmp_path / "b")
    assert path is not None and path.name == "step=4.ckpt" and not rejected
    trainer(tmp_path / "b", 8).fit(second, loader, ckpt_path=path)
    assert torch.equal(second.layer.weight, whole.layer.weight)
    names = sorted(file.name for file in (tmp_path / "b").iterdir())
    assert names == ["last.ckpt", "step=2.ckpt", "step=4.ckpt", "step=6.ckpt", "step=8.ckpt"]
