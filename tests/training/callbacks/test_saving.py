"""Which checkpoints are written, which stay, and that writing beside training writes the same
bytes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from d2v_pretrain.checkpoint import file as checkpoint
from d2v_pretrain.checkpoint.lightning import AtomicCheckpointIO
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.training.callbacks.metrics import Meter, MetricsLog
from d2v_pretrain.training.callbacks.saving import Saving

SCORES = {1: 5.0, 2: 3.0, 4: 8.0, 5: float("nan"), 6: 9.0, 7: 8.5, 8: 9.0}


class Scores(Meter):
    """A number of each logged step, as ``Health`` gives one now and then."""

    def __init__(self, name: str) -> None:
        self.name = name

    def observe(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        return {self.name: SCORES[trainer.global_step]} if trainer.global_step in SCORES else {}


def saved(folder: Path) -> dict[str, int]:
    return {path.name: checkpoint.step_of(path) for path in folder.glob("*.ckpt")}


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    "metric, best", [("effective_rank", 6), ("loss_relative", 2), ("absent", None)]
)
def test_what_stays(
    fit: Callable[..., Trainer],
    toy: type,
    tmp_path: Path,
    asynchronous: bool,
    metric: str,
    best: int | None,
) -> None:
    saving = Saving(
        tmp_path / "c", 2, None, keep_last=2, keep_every=8, best=metric, asynchronous=asynchronous
    )
    name = "effective_rank" if metric == "absent" else metric
    fit(
        toy(),
        13,
        [MetricsLog(1), Scores(name), saving],
        plugins=[saving.io],
        enable_checkpointing=True,
    )
    expected = {"step=8.ckpt": 8, "step=12.ckpt": 12, "step=13.ckpt": 13, "last.ckpt": 13}
    assert saved(tmp_path / "c") == expected | ({} if best is None else {"best.ckpt": best})
    assert not [path for path in (tmp_path / "c").glob("*") if checkpoint.fault(path)]


def test_the_best_so_far_is_remembered_by_a_resumed_run(
    fit: Callable[..., Trainer], toy: type, tmp_path: Path
) -> None:
    for steps, start in ((5, None), (8, tmp_path / "c" / "step=5.ckpt")):
        saving = Saving(tmp_path / "c", 1, None, keep_last=9, keep_every=None, best="loss_relative")
        callbacks = [MetricsLog(1), Scores("loss_relative"), saving]
        fit(
            toy(), steps, callbacks, plugins=[saving.io], enable_checkpointing=True, ckpt_path=start
        )
    assert (
        saved(tmp_path / "c")["best.ckpt"] == 2
    )  # 8 is worse than 3, though it is all that the second run met


def test_what_is_saved_beside_training_is_the_state_of_that_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on while the disk is slow; the next save waits, and the file that it names is
    whole."""
    go, written, write = threading.Event(), [], checkpoint.write

    def slowly(content: Any, path: Path, *more: Any) -> None:
        assert go.wait(20)
        write(content, path, *more)

    monkeypatch.setattr(checkpoint, "write", slowly)
    io = AtomicCheckpointIO(asynchronous=True, then=written.append)
    weight = torch.arange(5.0)
    state = {
        "global_step": 1,
        "state_dict": {"w": weight},
        "groups": [{"lr": 0.1, "betas": (0.9, weight[:2])}],
    }
    io.save_checkpoint(state, tmp_path / "a.ckpt")
    weight += 1
    state["groups"][0]["lr"] = 0.2
    assert not written and not (tmp_path / "a.ckpt").exists()
    go.set()
    io.save_checkpoint({"global_step": 2, "state_dict": {"w": weight}}, tmp_path / "b.ckpt")
    io.wait()
    first, second = (checkpoint.read(tmp_path / name) for name in ("a.ckpt", "b.ckpt"))
    assert first["state_dict"]["w"].tolist() == [0, 1, 2, 3, 4] and first["groups"][0]["lr"] == 0.1
    assert first["groups"][0]["betas"][1].tolist() == [0, 1] and second["state_dict"][
        "w"
    ].tolist() == [1, 2, 3, 4, 5]
    assert written == [tmp_path / "a.ckpt", tmp_path / "b.ckpt"]


def test_a_disk_that_fills_up_beside_training_is_told(
    fit: Callable[..., Trainer], toy: type, tmp_path: Path
) -> None:
    saving = Saving(tmp_path / "c", 2, None, keep_last=2, keep_every=None, asynchronous=True)
    (tmp_path / "c").mkdir()
    os.symlink("/dev/full", tmp_path / "c" / checkpoint.TEMPORARY)  # every write meets a full disk
    with pytest.raises(ConfigError, match=r"step=2.ckpt could not be written: no space is left"):
        fit(toy(), 8, [saving], plugins=[saving.io], enable_checkpointing=True)
