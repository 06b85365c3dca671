"""The largest micro-batch is tried at the start: it is the largest, leaves no trace, and says so if
it does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from d2v_pretrain.config.compose import load
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.training import module
from d2v_pretrain.training.run import pretrain
from datamodules.module import PretrainDataModule
from datamodules.synthetic.audio import SyntheticAudio
from datamodules.transforms.audio import AudioTransform

TINY = [
    *(
        "modality=audio",
        "trainer=cpu",
        "probe=null",
        "steps=2",
        "log_every=1",
        "global_batch=4",
        "micro_batch=2",
    ),
    *(
        "data.sequences=6",
        "data.words=20",
        "transform.crop_seconds=0.6",
        "encoder.width=32",
        "encoder.depth=3",
    ),
    *(
        "encoder.heads=2",
        "objective.predictor.dim=32",
        "objective.clones=2",
        "architecture.positions.groups=4",
    ),
]


def test_it_is_the_largest_of_the_first_pass() -> None:
    transform = AudioTransform(SyntheticAudio(30, 0, 0), crop_seconds=9, seed=0)
    data = PretrainDataModule(transform, micro_batch=4, global_batch=4, seed=0, max_tokens=200_000)
    sizes = [len(ids) * max(int(transform.lengths[i]) for i in ids) for ids in data.plan.window(0)]
    assert data.largest().inputs.numel() == max(sizes) > np.median(sizes)


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    trainer = pretrain(load([*TINY, f"folder={folder / name}"]))
    assert trainer is not None
    return {key: value.clone() for key, value in trainer.lightning_module.state_dict().items()}


def test_trying_it_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = weights(tmp_path, "plain")
    tried: list[int] = []
    largest = PretrainDataModule.largest
    monkeypatch.setattr(module, "MEMORY_TRIED", ("cpu",))
    monkeypatch.setattr(
        PretrainDataModule, "largest", lambda self: tried.append(1) or largest(self)
    )
    after = weights(tmp_path, "tried")
    assert tried == [1] and plain.keys() == after.keys()
    assert all(torch.equal(plain[key], after[key]) for key in plain)


def test_what_does_not_fit_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 80 GiB")

    monkeypatch.setattr(module, "MEMORY_TRIED", ("cpu",))
    monkeypatch.setattr(module.TrainingModule, "training_step", full)
    with pytest.raises(
        ConfigError,
        match=r"micro_batch=2 is too large .* inputs of \(2, \d+\) .*80 GiB.*; lower micro_batch",
    ):
        pretrain(load([*TINY, f"folder={tmp_path / 'run'}"]))
