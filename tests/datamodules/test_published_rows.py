"""The published rows are prepared as the reference prepares them.

Audio is cropped to the shortest clip of a batch and never padded, and clips under 2 s are left out;
blocks of data2vec 1 text have whole lines of one document; the learning rate of data2vec 1 vision
starts at 0."""

from __future__ import annotations

from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hydra.utils import instantiate

from d2v_pretrain.config.compose import load
from d2v_pretrain.types import BOS, EOS, Batch
from datamodules.datasets.base import RATE, Dataset
from datamodules.module import MicroBatches, PretrainDataModule
from datamodules.order import StepSampler
from datamodules.transforms.audio import AudioTransform

PUBLISHED = ["audio_data2vec1_base", "audio_data2vec2_base", "audio_data2vec2_base_paper"]
PUBLISHED += ["audio_data2vec2_large"]


class Clips(Dataset[np.ndarray]):
    """Clips whose samples say where they stand; number 5 cannot be read, and number 8 is 100
    samples shorter than its file says."""

    holds = "waveform"

    def __init__(self, lengths: np.ndarray) -> None:
        self.sizes = lengths

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def lengths(self) -> np.ndarray:  # type: ignore[override]
        return self.sizes

    def read(self, index: int) -> np.ndarray | None:
        size = int(self.sizes[index]) - 100 * (index == 8)
        return None if index == 5 else np.arange(size, dtype=np.float32)

    def describe(self) -> str:
        return "clips"


def clips(count: int, scale: float = 1) -> np.ndarray:
    """Lengths as those of LibriSpeech, 2 to 25 s with most near 15 s, times ``scale``."""
    rng = np.random.default_rng(0)
    seconds = np.clip(np.where(rng.random(count) < 0.3, rng.uniform(2, 12, count), 15), 2, 25)
    return ((seconds + rng.uniform(0, 1, count)) * RATE * scale).astype(int)


def data_of(recipe: str, lengths: np.ndarray) -> tuple[PretrainDataModule, Any]:
    cfg = load([f"recipe={recipe}", "data.root=."])
    transform = AudioTransform(
        Clips(lengths),
        cfg.transform.crop_seconds,
        0,
        cfg.transform.join,
        cfg.transform.crop_to_shortest,
    )
    sizes = cfg.micro_batch, cfg.global_batch
    return PretrainDataModule(transform, *sizes, 0, 0, cfg.max_tokens), cfg


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_rows_are_cropped_to_the_shortest_and_never_padded(recipe: str) -> None:
    lengths = clips(3000)
    data, cfg = data_of(recipe, lengths)
    batches = data.plan.window(0)
    assert sorted(np.concatenate(batches)) == list(range(3000))
    kept = 0
    for ids in batches:
        shortest = min(320_000, int(lengths[ids].min()))
        assert len(ids) * min(320_000, int(lengths[ids].max())) <= cfg.max_tokens
        kept += shortest * len(ids)
    # Sorted by length, as the reference sorts, little is lost to the shortest.
    assert kept > 0.99 * np.minimum(lengths, 320_000).sum()
    for batch in islice(data.batches(), 2):
        ids = batch.ids.numpy()
        real = lengths[ids] - 100 * (ids == 8)
        assert batch.lengths is None
        assert batch.inputs.shape == (len(ids), min(320_000, *real.tolist(), 320_000))


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_as_many_rows_as_the_reference_has(recipe: str) -> None:
    """``max_tokens`` alone decides how many clips of one length a micro-batch has, as in fairseq;
    the shortest clips are 2 s long. A step has one micro-batch for each of the published GPUs."""
    gpus = dict(zip(PUBLISHED, (16, 8, 16, 48), strict=True))[recipe]
    for seconds in (2, 20):
        data, cfg = data_of(recipe, np.full(400, seconds * RATE))
        assert len(data.plan.window(0)[0]) >= cfg.max_tokens // (seconds * RATE) - 1
        rows = {len(ids) for ids in data.plan.window(0)}
        assert max(rows) == cfg.max_tokens // (seconds * RATE)
        assert data.micro_batches_per_step == gpus


def small(lengths: np.ndarray, micro_batch: int = 3, steps: int = 12) -> PretrainDataModule:
    transform = AudioTransform(Clips(lengths), 0.2, 4, crop_to_shortest=True)
    return PretrainDataModule(transform, micro_batch, steps, 4)


def test_a_micro_batch_is_the_same_on_any_number_of_ranks_and_after_a_resume() -> None:
    """The shortest row is that of the micro-batch, which is the same whatever rank trains it; the
    crop is a function of (seed, epoch, id) and that length."""
    data = small(clips(40, 0.02))
    reader = MicroBatches(data.transform)

    def walk(rank: int, world: int, cursor: tuple[int, ...] = ()) -> list[Batch]:
        sampler = StepSampler(data.plan, 4, rank, world, cursor)
        return [reader[one] for one in islice(sampler, 5 * 4 // world)]

    alone = walk(0, 1)
    for world in (2, 4):
        part = 4 // world
        ranks = [walk(rank, world) for rank in range(world)]
        together = [
            batch
            for step in range(5)
            for rank in ranks
            for batch in rank[step * part : (step + 1) * part]
        ]
        assert all(map(equal, alone, together))
    resumed = walk(0, 1, alone[7].cursor)  # after the second step
    assert all(map(equal, alone[8:], resumed))
    widths = {batch.inputs.shape[1] for batch in alone}
    assert len(widths) > 3 and all(batch.lengths is None for batch in alone)


def equal(one: Batch, other: Batch) -> bool:
    return torch.equal(one.inputs, other.inputs) and torch.equal(one.ids, other.ids)


def test_an_item_of_unknown_length_does_not_shorten_the_others() -> None:
    """A dataset in memory gives an item that cannot be read the length 1."""
    lengths = np.full(9, 3000)
    lengths[5] = 1
    (batch,) = islice(small(lengths, 9, 9).batches(), 1)
    assert batch.inputs.shape == (9, 2900) and batch.weight is not None
    assert batch.weight.sum() == 8 and not batch.inputs[batch.ids == 5].any()


def test_the_masked_share_of_the_first_row() -> None:
    """.44 of the frames of each row of 24, in all rows alike (measured in the reference: 44.2 % of
    749 frames)."""
    cfg = load(["recipe=audio_data2vec1_base", "data.root=."])
    policy = instantiate(cfg.masking)
    shares = []
    for key in range(40):
        masked = policy(key, torch.arange(24), 1, (749,)).masked.float().mean(1)
        assert (masked == masked[0]).all()
        shares.append(float(masked[0]))
    assert np.mean(shares) == pytest.approx(0.442, abs=0.004)


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_clips_under_two_seconds_are_left_out(recipe: str, tmp_path: Path) -> None:
    folder = tmp_path / "train-clean-100" / "1" / "2"
    folder.mkdir(parents=True)
    for name, samples in (("short", 31_999), ("just", 32_000), ("long", 50_000)):
        noise = np.random.default_rng(0).normal(0, 0.1, samples)
        soundfile.write(folder / f"{name}.flac", noise, RATE)
    cfg = load([f"recipe={recipe}", f"data.root={tmp_path}", "data.max_bad_share=0.9"])
    cfg.data.skipped_path = None
    dataset = instantiate(cfg.data)
    assert sorted(dataset.lengths.tolist()) == [32_000, 50_000]


def test_blocks_of_whole_lines_of_one_document(tmp_path: Path) -> None:
    """As many blocks in a micro-batch as 8,192 tokens allow, sorted by length, as in fairseq."""
    rng = np.random.default_rng(0)
    for name in "ab":
        documents = [
            "\n".join(" ".join(["word"] * rng.integers(3, 60)) + "." for _ in range(lines))
            for lines in rng.integers(1, 30, 60)
        ]
        (tmp_path / f"{name}.txt").write_text("\n\n".join(documents))
    words = [f"data.root={tmp_path}", "transform.vocab_size=300", "transform.cache=null"]
    cfg = load(["recipe=text_data2vec1_base", *words])
    cfg.data.skipped_path = None
    transform = instantiate(cfg.transform)
    data = PretrainDataModule(transform, cfg.micro_batch, cfg.global_batch, 0, 0, cfg.max_tokens)
    assert data.micro_batches_per_step == 16
    lengths, batches = transform.lengths, data.plan.window(0)
    assert sorted(np.concatenate(batches)) == list(range(len(transform)))
    batches.sort(key=lambda ids: int(lengths[ids].max()))
    assert max(map(len, batches)) > 16
    for ids, longer in pairwise(batches):
        assert lengths[ids].max() <= lengths[longer].min(), "sorted by length"
        assert len(ids) * lengths[ids].max() <= 8192 < (len(ids) + 1) * lengths[longer].min()
    for i in range(len(transform)):
        block = transform.read(i, 0).tolist()
        assert block[0] == BOS and block[-1] == EOS and [EOS, EOS] not in map(list, pairwise(block))


@pytest.mark.parametrize("size", ["base", "large", "large_stage2"])
def test_vision_warms_up_from_zero(size: str) -> None:
    """BEiT's ``cosine_scheduler`` starts at its default of 0; the option ``warmup_lr`` is not
    read."""
    cfg = load([f"recipe=vision_data2vec1_{size}", "data.root=."])
    schedule = instantiate(cfg.schedule)
    assert schedule(0) == 0 and schedule(cfg.warmup) == cfg.lr
    assert schedule(cfg.warmup // 2) == pytest.approx(cfg.lr / 2, rel=1e-9)
    assert schedule(cfg.steps) == pytest.approx(1e-5)
