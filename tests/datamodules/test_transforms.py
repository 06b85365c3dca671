"""Sources and the datamodule: samples as functions of (seed, epoch, index), normalisation, crops,
blocks, padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.types import BOS, EOS, PAD, Batch
from datamodules.datasets.base import Dataset, TextDataset
from datamodules.datasets.probe_tasks import FixedBatches, Labelled, Split, collate
from datamodules.module import PretrainDataModule
from datamodules.synthetic.vision import SyntheticVision
from datamodules.transforms.audio import AudioTransform, log_mel
from datamodules.transforms.n_grams import n_grams
from datamodules.transforms.text import TextTransform
from datamodules.transforms.vision import VisionTransform, pixels


class Waves(Dataset[np.ndarray]):
    """Ramps of different lengths; number 3 cannot be read."""

    holds = "waveform"
    lengths = None

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = np.array(lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, index: int) -> np.ndarray | None:
        wave = np.arange(self.lengths[index], dtype=np.float32) + index
        return None if index == 3 else wave

    def describe(self) -> str:
        return "ramps"

    def labelled(self) -> list[Labelled[np.ndarray]]:
        return [
            Labelled(
                "parity", *(Split(self.read, np.arange(5) % 2) for _ in range(2)), 2, "none unseen"
            )
        ]


class Lines(TextDataset):
    """Some lines of text."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def texts(self) -> list[str]:
        return self.lines

    def describe(self) -> str:
        return "lines"


def audio(lengths: list[int], seed: int = 0, **settings: int) -> PretrainDataModule:
    transform = AudioTransform(Waves(lengths), crop_seconds=0.1, seed=seed)
    return PretrainDataModule(
        transform, **{"micro_batch": 2, "global_batch": 4, "seed": seed, **settings}
    )


def vision(seed: int = 0, **changes: object) -> VisionTransform:
    settings = {
        "size": 32,
        "scale": (0.5, 1),
        "ratio": (0.75, 1.33),
        "jitter": 0.4,
        "flip": 0.5,
        "centre": 1.0,
    }
    colours = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "standardise": False}
    return VisionTransform(
        SyntheticVision(10, 4, 4, 0), **{**settings, **colours, **changes}, seed=seed
    )


def same(a: Batch, b: Batch) -> bool:
    return (
        torch.equal(a.inputs, b.inputs)
        and torch.equal(a.ids, b.ids)
        and (a.epoch, a.cursor) == (b.epoch, b.cursor)
    )


def test_standardised_images_have_no_colour_and_unit_contrast() -> None:
    transform = vision(standardise=True)
    images = transform.finish(torch.stack([transform.read(i, 0) for i in (3, 4)]))
    assert images.mean((2, 3)).abs().max() < 1e-5
    assert (images.square().mean((1, 2, 3)) - 1).abs().max() < 0.05


def test_waveform_is_normalised_before_the_crop() -> None:
    transform = AudioTransform(Waves([5000, 1000]), crop_seconds=0.1, seed=0)
    whole = np.arange(5000) - 2499.5
    whole /= np.sqrt((whole**2).mean() + 1e-5)
    crop = transform.read(0, epoch=0).double().numpy()
    start = int(np.abs(whole - crop[0]).argmin())
    assert len(crop) == 1600 and np.allclose(crop, whole[start : start + 1600], atol=1e-5)
    assert transform.read(1, epoch=0).shape == (1000,) and transform.lengths.tolist() == [
        1600,
        1000,
    ]


def test_crops_depend_on_seed_epoch_and_index_alone() -> None:
    def starts(seed: int, epoch: int) -> list[float]:
        transform = AudioTransform(Waves([9000] * 3), crop_seconds=0.1, seed=seed)
        return [float(transform.read(i, epoch)[0]) for i in (2, 0, 1)]

    assert starts(0, 0) == starts(0, 0)
    assert (
        len({value for seed in (0, 1) for epoch in (0, 1) for value in starts(seed, epoch)}) == 12
    )


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
    # The last two frames of the row look past its end: into the mirror image alone, into zeros when
    # padded
    assert torch.allclose(log_mel(alone)[0, :40], log_mel(padded)[0, :40], atol=0.1)


def test_augmentation_is_a_function_of_position_and_leaves_torch_alone() -> None:
    transform = vision()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    views = {(e, i): transform.read(i, e) for e in (0, 1) for i in (0, 1)}
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(vision().read(1, 1), views[1, 1])
    assert not torch.equal(views[0, 0], views[1, 0]) and not torch.equal(
        vision(seed=1).read(0, 0), views[0, 0]
    )


def test_vision_normalises_and_probes_see_the_image_itself() -> None:
    transform = vision(scale=(1, 1), ratio=(1, 1), jitter=0, flip=0)
    image = torch.from_numpy(transform.dataset.read(2)).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))
    module = PretrainDataModule(transform, micro_batch=5, global_batch=5, seed=0)
    raw, batch = next(iter(module.train_dataloader())), next(module.batches())
    assert raw.inputs.dtype == torch.uint8 and batch.inputs.dtype == torch.float32
    assert torch.equal(module.on_after_batch_transfer(raw, 0).inputs, batch.inputs)
    rows = {int(i): row for i, row in zip(batch.ids, batch.inputs, strict=True)}
    rows |= {
        int(i): row
        for b in [list(islice(module.batches(), 2))[1]]
        for i, row in zip(b.ids, b.inputs, strict=True)
    }
    assert torch.allclose(rows[2], (image - mean) / std, atol=1e-5)
    assert all(b.inputs.dtype == torch.float32 for b in module.health_batches(3))
    batch = next(iter(transform.probe_tasks()[0].test))
    assert batch.inputs.shape == (4, 3, 32, 32) and pixels(batch).shape == (4, 3072)


def test_blocks_are_the_stream_cut() -> None:
    lines = [f"line {i} of some text, it is {i * i} long" for i in range(200)]
    transform = TextTransform(Lines(lines), block=16, vocab_size=300, tokenizer=None, cache=None)
    stream: list[int] = []
    for ids in transform.vocabulary.encode(lines):
        stream += [*ids.tolist(), EOS]
    blocks = [transform.read(i, 0).tolist() for i in range(len(transform))]
    assert all(block[0] == BOS and len(block) == 16 for block in blocks)
    joined = [token for block in blocks for token in block[1:]]
    assert joined == stream[: len(joined)] and len(stream) - len(joined) < 15


def test_text_shorter_than_a_block_is_told() -> None:
    transform = TextTransform(
        Lines(["short"]), block=512, vocab_size=300, tokenizer=None, cache=None
    )
    with pytest.raises(
        ConfigError,
        match=r"transform.block=512 is more than the whole text, \d+ tokens; set a smaller",
    ):
        len(transform)


def test_n_grams_against_a_loop() -> None:
    ids: Tensor = torch.tensor([[BOS, 10, 11, 10, 11, EOS], [BOS, 12, EOS, PAD, PAD, PAD]])
    counts = n_grams(Batch(ids, torch.tensor([0, 1]))).expm1().round()
    # 10 and 11 and "10 11" twice; "11 10", "10 11 10", "11 10 11" once
    assert sorted(counts[0][counts[0] > 0].tolist()) == [1, 1, 1, 2, 2, 2]
    assert counts[1].sum() == 1


def test_global_batch_must_be_a_multiple() -> None:
    with pytest.raises(ConfigError, match="global_batch=10 must be a multiple of micro_batch=4"):
        PretrainDataModule(vision(), micro_batch=4, global_batch=10, seed=0)


def test_windows_of_shards_need_shards() -> None:
    rule = "window_shards=8 has no effect on samples that are not in shards; leave it out"
    with pytest.raises(ConfigError, match=rule):
        PretrainDataModule(vision(), micro_batch=4, global_batch=8, seed=0, window_shards=8)


def test_labelled_items_that_cannot_be_read_are_too_many() -> None:
    """One alone is not; a share that is exceeded is, at the end of the batches."""

    class Some(Waves):
        max_bad_share = 0.2

    for bad, fails in ((1, False), (2, False), (3, True)):
        told = Split(lambda i, bad=bad: None if i < bad else np.zeros((3, 8, 8)), np.zeros(10))
        batches = FixedBatches(told, torch.from_numpy, check=Some([5]).check_share)
        if not fails:
            assert sum(len(batch) for batch in batches) == 10 - bad
            continue
        with pytest.raises(ConfigError, match=r"max_bad_share=0.2 does not allow 3 .* of 10"):
            list(batches)


def test_items_of_fixed_batches_may_all_be_unreadable() -> None:
    assert list(FixedBatches(Split(lambda i: None, np.zeros(3)), torch.from_numpy)) == []


@pytest.mark.parametrize("jitter", [0.0, 0.4])
def test_augmentation_against_torchvisions_first_transforms_on_pillow(jitter: float) -> None:
    """BEiT's and MAE's recipe with the library and the image type that the reference used, from the
    same seed."""
    import torchvision.transforms as v1
    from PIL import Image

    from d2v_pretrain.rng import fold_in

    pixels = np.random.default_rng(0).integers(0, 256, (8, 10, 3)).astype(np.uint8)
    image = Image.fromarray(pixels).resize(
        (90, 70), Image.Resampling.BICUBIC
    )  # smooth, as a photograph is
    transform = vision(scale=(0.2, 1), ratio=(3 / 4, 4 / 3), jitter=jitter)
    transform.dataset.read = lambda index: np.array(image).transpose(2, 0, 1)  # type: ignore[method-assign]
    crop = v1.RandomResizedCrop(32, (0.2, 1), (3 / 4, 4 / 3), v1.InterpolationMode.BICUBIC)
    steps = [v1.ColorJitter(jitter, jitter, jitter)] if jitter else []
    theirs = v1.Compose([*steps, crop, v1.RandomHorizontalFlip(0.5)])
    for epoch in range(12):
        torch.manual_seed(fold_in(0, 3, epoch, 1))
        expected = np.asarray(theirs(image)).transpose(2, 0, 1).astype(int)
        off = np.abs(transform.read(1, epoch).numpy().astype(int) - expected)
        assert off.max() <= 4 and off.mean() < 1


def crops(lengths: list[int], workers: int = 0) -> PretrainDataModule:
    transform = AudioTransform(Waves(lengths), crop_seconds=0.1, seed=0, crop_to_shortest=True)
    return PretrainDataModule(
        transform, micro_batch=3, global_batch=3, seed=0, workers=workers, buckets=1
    )


def test_rows_are_cropped_to_the_shortest_of_their_micro_batch() -> None:
    lengths = [5000, 1500, 900, 700, 1700, 3000, 1200, 800, 2500]
    batches = list(islice(crops(lengths).train_dataloader(), 6))
    assert sorted(i for b in batches[:3] for i in b.ids.tolist()) == list(range(9))
    for batch in batches:
        shortest = min([1600, *(lengths[i] for i in batch.ids.tolist())])
        assert batch.lengths is None and batch.inputs.shape == (3, shortest), "nothing is padded"
        for i, row in zip(batch.ids.tolist(), batch.inputs.double().numpy(), strict=True):
            whole = np.arange(lengths[i]) + float(i)
            whole = (whole - whole.mean()) / np.sqrt(whole.var() + 1e-5)
            start = int(np.abs(whole - row[0]).argmin())
            assert i == 3 or np.allclose(row, whole[start : start + shortest], atol=1e-4), (
                "normalised whole, then cropped"
            )
    assert all(map(same, islice(crops(lengths, workers=2).train_dataloader(), 6), batches))
    (bad,) = [b for b in batches[:3] if 3 in b.ids]
    assert (
        not bad.inputs[bad.ids == 3].any()
        and bad.weight is not None
        and bad.weight[bad.ids == 3] == 0
    )


def test_the_crop_to_the_shortest_starts_anywhere() -> None:
    transform = AudioTransform(Waves([4000]), crop_seconds=0.1, seed=0, crop_to_shortest=True)
    ramp = transform.read(0, 0, longest=3999)
    firsts = [float(transform.read(0, epoch, longest=1000)[0]) for epoch in range(300)]
    step = float(ramp[1] - ramp[0])
    starts = sorted(round((first - min(firsts)) / step) for first in firsts)
    assert starts[-1] > 2900 and abs(np.median(starts) - 1500) < 300


def test_joined_clips_are_each_read_once_and_fill_a_crop() -> None:
    lengths = np.random.default_rng(0).integers(100, 900, 200).tolist()
    lengths[7] = 4000
    transform = AudioTransform(Waves(lengths), crop_seconds=0.1, seed=5, join=True)
    groups = [group.tolist() for group in transform.dataset.groups]
    assert sorted(i for group in groups for i in group) == list(range(200))
    totals = [sum(lengths[i] for i in group) for group in groups]
    assert (
        all(total <= 1600 or len(group) == 1 for total, group in zip(totals, groups, strict=True))
        and [7] in groups
    )
    for total, following in zip(totals, groups[1:], strict=False):
        assert total + lengths[following[0]] > 1600, (
            "a group is closed only if the next clip does not fit"
        )
    assert transform.lengths.tolist() == [min(total, 1600) for total in totals]
    again = AudioTransform(Waves(lengths), crop_seconds=0.1, seed=5, join=True)
    other = AudioTransform(Waves(lengths), crop_seconds=0.1, seed=6, join=True)
    assert (
        [g.tolist() for g in again.dataset.groups]
        == groups
        != [g.tolist() for g in other.dataset.groups]
    )
    assert transform.describe().startswith("ramps, joined to ") and len(transform) == len(groups)
    assert len(transform.probe_tasks()[0].test.split) == 5, "the probe hears single clips"


def test_joined_clips_are_equally_loud_and_a_bad_one_is_silence() -> None:
    lengths = [300, 400, 500, 250, 350, 450]
    transform = AudioTransform(Waves(lengths), crop_seconds=0.1, seed=0, join=True)
    for n, group in enumerate(transform.dataset.groups):
        wave, place = transform.dataset.read(n), 0
        for i in group.tolist():
            part = wave[place : place + lengths[i]]
            assert abs(part.mean()) < 1e-4 and part.std() == pytest.approx(
                0 if i == 3 else 1, abs=1e-3
            )
            place += lengths[i]
        assert place == len(wave) == transform.dataset.lengths[n]
    alone = AudioTransform(Waves([1600] * 4), 0.1, 0, join=True)
    assert [alone.read(n, 0) is None for n in range(4)] == [
        g.tolist() == [3] for g in alone.dataset.groups
    ]


class ShardedWaves(Waves):
    """Three shards, of which the first is at hand."""

    shard_sizes = np.array([11, 0, 19])
    checksums = np.array([7, 8, 9], np.uint32)

    def __init__(self, lengths: list[int]) -> None:
        super().__init__(lengths)
        self.told: list[int] = []

    def prefetch(self, shards: Sequence[int] | np.ndarray) -> None:
        self.told.extend(map(int, shards))

    def at_hand(self) -> np.ndarray:
        return np.arange(7, 11)


def test_joined_clips_stay_in_their_shard() -> None:
    waves = ShardedWaves([200] * 30)
    module = PretrainDataModule(
        AudioTransform(waves, 0.1, 0, join=True), 1, 1, seed=0, window_shards=1
    )
    dataset = module.transform.dataset
    assert dataset.shard_sizes.tolist() == [2, 0, 3], "8 clips fill a crop"
    assert all(len({bool(i >= 11) for i in group.tolist()}) == 1 for group in dataset.groups)
    seen = [
        int(i) for b in islice(module.train_dataloader(), 5) for i in dataset.groups[int(b.ids)]
    ]
    assert sorted(seen) == list(range(30)) and {0, 2} <= set(waves.told)
    assert dataset.checksums.tolist() == [7, 8, 9]
    batches = module.health_batches(4)
    assert batches and all(set(batch.ids.tolist()) <= {0, 1} for batch in batches)
