"""The base classes of datasets and transforms, by the smallest extension from outside: multichannel
series; and which transform takes which dataset."""

from __future__ import annotations

import pickle
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from d2v_pretrain.errors import ConfigError
from datamodules.datasets.audio_folder import AudioFolder
from datamodules.datasets.base import Dataset
from datamodules.datasets.probe_tasks import Labelled, Split
from datamodules.module import PretrainDataModule
from datamodules.public.vision import TorchvisionImages
from datamodules.shards.text import TextShards
from datamodules.synthetic.text import SyntheticText
from datamodules.transforms.audio import AudioTransform
from datamodules.transforms.base import CropTransform, mean_and_std, normalise
from datamodules.transforms.labelled import LabelledTransform
from datamodules.transforms.text import TextTransform
from datamodules.transforms.vision import VisionTransform


class Sensors(Dataset[np.ndarray]):
    """Recordings of three channels; number 4 cannot be read."""

    holds = "sensor"

    def __init__(self, recordings: int) -> None:
        self.recordings = recordings

    def __len__(self) -> int:
        return self.recordings

    def read(self, index: int) -> np.ndarray | None:
        rng = np.random.default_rng(index)
        wave = rng.normal(index % 2, 1 + np.arange(3)[:, None], (3, 20 + 5 * index))
        return None if index == 4 else wave.astype(np.float32)

    def describe(self) -> str:
        return f"{self.recordings} recordings"

    def labelled(self) -> list[Labelled[np.ndarray]]:
        split = Split(self.read, np.arange(self.recordings) % 2)
        return [Labelled("parity", split, split, 2, "nothing is unseen")]


class SensorTransform(CropTransform):
    """Crops of recordings."""

    takes = "sensor"

    @classmethod
    def longest_input(cls, **settings: Any) -> tuple[int, ...]:
        return (3, settings["crop"])


def test_series_need_no_more_than_what_they_are() -> None:
    data = PretrainDataModule(SensorTransform(Sensors(8), crop=40, seed=0), 4, 4, seed=0)
    assert data.transform.lengths.tolist() == [20, 25, 30, 35, 1, 40, 40, 40]
    batches = list(islice(data.batches(), 2))
    assert sorted(i for batch in batches for i in batch.ids.tolist()) == list(range(8))
    for batch in batches:
        assert batch.inputs.shape[:2] == (4, 3) and batch.inputs.dtype == torch.float32
        for row, i, length in zip(batch.inputs, batch.ids.tolist(), batch.lengths, strict=True):
            item = Sensors(8).read(i)
            if item is None:
                assert not row.any() and batch.weight is not None and not batch.weight.all()
                continue
            assert not row[:, length:].any()
            if item.shape[1] <= 40:
                assert torch.equal(row[:, :length], normalise(item))
            else:
                windows = normalise(item).unfold(1, 40, 1)
                assert any(torch.equal(row, windows[:, start]) for start in range(windows.shape[1]))
    again = next(iter(data.train_dataloader()))
    assert torch.equal(again.inputs, batches[0].inputs)


def test_series_are_probed_over_mean_and_std() -> None:
    (task,) = SensorTransform(Sensors(8), crop=40, seed=0).probe_tasks()
    (batch,) = task.train
    assert batch.ids.tolist() == [0, 1, 2, 3, 5, 6, 7], "whole items, without the unreadable one"
    features = task.raw_baseline(batch)
    assert features.shape == (7, 6) and task.raw_baseline_name == "mean + std"
    for row, item in zip(features, map(Sensors(8).read, batch.ids.tolist()), strict=True):
        view = normalise(item)
        known = torch.cat([view.mean(1), view.std(1, correction=0)])
        assert torch.allclose(row, known, atol=1e-5)
    flat = mean_and_std(next(iter(AudioTransform(Tone(), 1, 0).probe_tasks()[0].test)))
    assert flat.shape == (2, 2) and torch.allclose(flat[:, 1], torch.ones(2), atol=1e-3)


class Tone(Dataset[np.ndarray]):
    """Two waveforms."""

    holds = "waveform"

    def __len__(self) -> int:
        return 2

    def read(self, index: int) -> np.ndarray:
        return np.sin(np.arange(2000 + 500 * index, dtype=np.float32))

    def describe(self) -> str:
        return "a tone"

    def labelled(self) -> list[Labelled[np.ndarray]]:
        return [
            Labelled("which", Split(self.read, np.arange(2)), Split(self.read, np.arange(2)), 2, "")
        ]


def test_labelled_series_have_their_lengths() -> None:
    transform = LabelledTransform(SensorTransform(Sensors(8), crop=40, seed=0))
    data = PretrainDataModule(transform, 7, 7, seed=0)
    batch = next(data.batches())
    assert transform.lengths.tolist() == [20, 25, 30, 35, 40, 40, 40]
    assert batch.inputs.shape == (7, 3, 40)
    items = np.array([0, 1, 2, 3, 5, 6, 7])[batch.ids]
    assert batch.labels.tolist() == (items % 2).tolist()


@pytest.mark.parametrize(
    "transform, dataset",
    [
        (AudioTransform, AudioFolder),
        (VisionTransform, TorchvisionImages),
        (TextTransform, TextShards),
        (SensorTransform, Sensors),
    ],
)
def test_a_right_pair_passes(transform: Any, dataset: type) -> None:
    transform.check_dataset(dataset)


@pytest.mark.parametrize(
    "transform, dataset, sentence",
    [
        (
            VisionTransform,
            AudioFolder,
            "data=AudioFolder holds items of kind waveform, and VisionTransform takes image; "
            "choose other data or modality.",
        ),
        (AudioTransform, dict, "data=dict is no dataset: it must be a subclass of"),
    ],
)
def test_a_wrong_pair_is_told(transform: Any, dataset: type, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        transform.check_dataset(dataset)
    assert str(error.value).startswith(sentence)


def test_a_wrong_pair_cannot_be_made() -> None:
    with pytest.raises(ConfigError, match="SyntheticText holds items of kind text"):
        AudioTransform(SyntheticText(1, 1, 1, 0), 1.0, 0)  # type: ignore[arg-type]


def test_longest_inputs() -> None:
    assert AudioTransform.longest_input(crop_seconds=1.5, seed=0, join=True) == (24_000,)
    assert VisionTransform.longest_input(size=32, flip=0.5) == (3, 32, 32)
    assert TextTransform.longest_input(block=64, vocab_size=300) == (64,)


def test_a_text_transform_survives_pickling() -> None:
    transform = TextTransform(SyntheticText(2, 1, 1, 0), 16, 300, None, None)
    copy = pickle.loads(pickle.dumps(transform))
    assert type(copy) is TextTransform and len(copy) == len(transform)
