"""Sources and the datamodule: samples as functions of (seed, epoch, index), normalisation, crops, blocks, padding."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.types import Batch
from datamodules.audio import AudioSource, log_mel
from datamodules.module import PretrainDataModule
from datamodules.probe import FixedBatches, Labelled, Split, collate
from datamodules.synthetic_vision import SyntheticVision
from datamodules.text import TextSource, n_grams
from datamodules.tokenizer import BOS, EOS, PAD
from datamodules.vision import VisionSource, pixels


class Waves:
    """Ramps with noise, of different lengths; number 3 cannot be read."""

    def __init__(self, lengths: list[int]) -> None:
        self.frames = np.array(lengths)

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, index: int) -> np.ndarray | None:
        wave = np.arange(self.frames[index], dtype=np.float32) + index
        return None if index == 3 else wave

    def describe(self) -> str:
        return "ramps"

    def labelled(self) -> list[Labelled[np.ndarray]]:
        return [Labelled("parity", *(Split(self.read, np.arange(5) % 2) for _ in range(2)), 2, "none unseen")]


class Lines:
    """Some lines of text."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def texts(self) -> list[str]:
        return self.lines

    def describe(self) -> str:
        return "lines"

    def labelled(self) -> list[Labelled[str]]:
        return []


def audio(lengths: list[int], seed: int = 0, **settings: int) -> PretrainDataModule:
    source = AudioSource(Waves(lengths), crop_seconds=0.1, seed=seed)
    return PretrainDataModule(source, **{"micro_batch": 2, "global_batch": 4, "seed": seed, **settings})


def vision(seed: int = 0, **changes: object) -> VisionSource:
    settings = {"size": 32, "scale": (0.5, 1), "ratio": (0.75, 1.33), "jitter": 0.4, "flip": 0.5, "centre": 1.0}
    colours = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "standardise": False}
    return VisionSource(SyntheticVision(10, 4, 4, 0), **{**settings, **colours, **changes}, seed=seed)


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.inputs, b.inputs) and torch.equal(a.ids, b.ids) and (a.epoch, a.cursor) == (b.epoch, b.cursor)


def test_standardised_images_have_no_colour_and_unit_contrast() -> None:
    image = vision(standardise=True).read(3, 0)
    assert image is not None
    assert image.mean((1, 2)).abs().max() < 1e-5
    assert abs(float(image.square().mean()) - 1) < 0.05


def test_waveform_is_normalised_before_the_crop() -> None:
    source = AudioSource(Waves([5000, 1000]), crop_seconds=0.1, seed=0)
    whole = np.arange(5000) - 2499.5
    whole /= np.sqrt((whole**2).mean() + 1e-5)
    crop = source.read(0, epoch=0).double().numpy()
    start = int(np.abs(whole - crop[0]).argmin())
    assert len(crop) == 1600 and np.allclose(crop, whole[start : start + 1600], atol=1e-5)
    assert source.read(1, epoch=0).shape == (1000,) and source.lengths.tolist() == [1600, 1000]


def test_crops_depend_on_seed_epoch_and_index_alone() -> None:
    def starts(seed: int, epoch: int) -> list[float]:
        source = AudioSource(Waves([9000] * 3), crop_seconds=0.1, seed=seed)
        return [float(source.read(i, epoch)[0]) for i in (2, 0, 1)]

    assert starts(0, 0) == starts(0, 0)
    assert len({value for seed in (0, 1) for epoch in (0, 1) for value in starts(seed, epoch)}) == 12


def test_unequal_rows_are_padded_on_the_right() -> None:
    batch = collate([torch.ones(3), torch.ones(5)], np.array([7, 8]), fill=9)
    assert batch.inputs.tolist() == [[1, 1, 1, 9, 9], [1] * 5]
    assert batch.lengths.tolist() == [3, 5] and batch.ids.tolist() == [7, 8]
    assert collate([torch.ones(3), torch.ones(3)], np.array([7, 8])).lengths is None


def test_unreadable_sample_weighs_nothing_and_does_not_change_the_plan() -> None:
    batches = list(islice(audio([2000] * 7).train_dataloader(), 4))
    assert sorted(torch.cat([b.ids for b in batches]).tolist()) == list(range(7))
    for batch in batches:
        if 3 in batch.ids:
            assert batch.weight.tolist() == [float(i != 3) for i in batch.ids.tolist()]
            assert not batch.inputs[batch.ids == 3].any() and batch.inputs[batch.ids != 3].any()
        else:
            assert batch.weight is None


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_goes_on_with_the_same_batches(workers: int) -> None:
    whole = list(islice(audio([3000] * 9).train_dataloader(), 12))
    resumed = audio([3000] * 9, workers=workers)
    resumed.cursor = whole[4].cursor
    assert all(map(same, islice(resumed.train_dataloader(), 7), whole[5:]))
    assert [b.epoch for b in whole] == [0] * 5 + [1] * 5 + [2] * 2


def test_probe_leaves_out_what_cannot_be_read_and_iterates_alike() -> None:
    task = audio([2000, 900, 1500, 800, 700]).probe_tasks()[0]
    first, second = list(task.train), list(task.train)
    assert first[0].ids.tolist() == [0, 1, 2, 4] and first[0].labels.tolist() == [0, 1, 0, 0]
    assert torch.equal(first[0].inputs, second[0].inputs)


def test_health_batches_are_fixed_and_spread() -> None:
    module = audio([2000] * 3 + [2500] * 6)
    ids = torch.cat([b.ids for b in module.health_batches(5)]).tolist()
    assert ids == [0, 2, 4, 6, 8]
    assert all(map(same, module.health_batches(5), module.health_batches(5)))


def test_log_mel_ignores_padding() -> None:
    wave = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    alone = Batch(wave[:, :4000], torch.tensor([0]))
    other = torch.cat([torch.cat([wave[:, :4000], torch.zeros(1, 4000)], 1), wave])
    padded = Batch(other, torch.tensor([0, 1]), lengths=torch.tensor([4000, 8000]))
    # The last two frames of the row look past its end: into the mirror image alone, into zeros when padded
    assert torch.allclose(log_mel(alone)[0, :40], log_mel(padded)[0, :40], atol=0.1)


def test_augmentation_is_a_function_of_position_and_leaves_torch_alone() -> None:
    source = vision()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    views = {(e, i): source.read(i, e) for e in (0, 1) for i in (0, 1)}
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(vision().read(1, 1), views[1, 1])
    assert not torch.equal(views[0, 0], views[1, 0]) and not torch.equal(vision(seed=1).read(0, 0), views[0, 0])


def test_vision_normalises_and_probes_see_the_image_itself() -> None:
    source = vision(scale=(1, 1), ratio=(1, 1), jitter=0, flip=0)
    image = torch.from_numpy(source.corpus.read(2)).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))
    assert torch.allclose(source.read(2, 0), (image - mean) / std, atol=1e-5)
    batch = next(iter(source.probe_tasks()[0].test))
    assert batch.inputs.shape == (4, 3, 32, 32) and pixels(batch).shape == (4, 3072)


def test_blocks_are_the_stream_cut() -> None:
    lines = [f"line {i} of some text, it is {i * i} long" for i in range(200)]
    source = TextSource(Lines(lines), block=16, vocab_size=300, tokenizer=None, cache=None)
    stream: list[int] = []
    for ids in source.vocabulary.encode(lines):
        stream += [*ids.tolist(), EOS]
    blocks = [source.read(i, 0).tolist() for i in range(len(source))]
    assert all(block[0] == BOS and len(block) == 16 for block in blocks)
    joined = [token for block in blocks for token in block[1:]]
    assert joined == stream[: len(joined)] and len(stream) - len(joined) < 15


def test_text_shorter_than_a_block_is_told() -> None:
    source = TextSource(Lines(["short"]), block=512, vocab_size=300, tokenizer=None, cache=None)
    with pytest.raises(ConfigError, match=r"source.block=512 is more than the whole text, \d+ tokens; set a smaller"):
        len(source)


def test_n_grams_against_a_loop() -> None:
    ids: Tensor = torch.tensor([[BOS, 10, 11, 10, 11, EOS], [BOS, 12, EOS, PAD, PAD, PAD]])
    counts = n_grams(Batch(ids, torch.tensor([0, 1]))).expm1().round()
    # 10 and 11 and "10 11" twice; "11 10", "10 11 10", "11 10 11" once
    assert sorted(counts[0][counts[0] > 0].tolist()) == [1, 1, 1, 2, 2, 2]
    assert counts[1].sum() == 1


def test_global_batch_must_be_a_multiple() -> None:
    with pytest.raises(ConfigError, match="global_batch=10 must be a multiple of micro_batch=4"):
        PretrainDataModule(vision(), micro_batch=4, global_batch=10, seed=0)


def test_items_of_fixed_batches_may_all_be_unreadable() -> None:
    assert list(FixedBatches(Split(lambda i: None, np.zeros(3)), torch.from_numpy)) == []
