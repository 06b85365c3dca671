"""How fast one core reads training data, and where the time goes.

    python -m benchmarks.data [samples, 60]

First part: samples a second of our shards and folders, of webdataset, and of a DataLoader over
files (``benchmarks/rivals.py``), and the time of each step of ours. The sounds, images and blocks
of token ids are made here; crops and augmentation are those of the published data2vec 2.0 base
recipes. One process with one thread reads files that are in the page cache.

Second part: start-up with a million samples in shards, and planning the order of ten million.

All numbers are printed and written to ``benchmarks/results/data.json``."""

from __future__ import annotations

import argparse
import io
import json
import os
import tarfile
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from hydra.utils import instantiate
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.rivals import batched, rivals
from d2v_pretrain.config.compose import load
from datamodules.datasets.resampling import resampled
from datamodules.module import MicroBatches
from datamodules.order import EpochOrder, MicroBatch
from datamodules.shards.audio import AudioShards
from datamodules.shards.index import ENTRY, Index, build_index, save
from datamodules.shards.tar import sample_of
from datamodules.transforms.audio import AudioTransform
from datamodules.transforms.text import TokenBlocks

RESULTS = Path(__file__).parent / "results" / "data.json"
ROWS, SHARD = 16, 100  # samples of a micro-batch and of a shard
# Shape of the tokens of a sample, for which masks are drawn.
GRID = {"audio": (1000,), "vision": (14, 14), "text": (512,)}


def sound(i: int) -> bytes:
    """A FLAC file with 2 to 20 s of noise whose spectrum is roughly that of speech."""
    draw, file = np.random.default_rng(i), io.BytesIO()
    wave = np.cumsum(draw.standard_normal(draw.integers(32_000, 320_000)))
    wave -= np.convolve(wave, np.ones(64) / 64, "same")
    soundfile.write(file, 0.3 * wave / np.abs(wave).max(), 16_000, format="FLAC")
    return file.getvalue()


def image(i: int) -> bytes:
    """A JPEG file of 500 x 375 pixels, about the size of ImageNet's."""
    draw, file = np.random.default_rng(i), io.BytesIO()
    small = Image.fromarray(draw.integers(0, 256, (24, 32, 3)).astype(np.uint8))
    noise = draw.normal(0, 6, (375, 500, 3))
    pixels = np.asarray(small.resize((500, 375), Image.Resampling.BICUBIC)) + noise
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def block(i: int) -> bytes:
    """A NumPy file with 512 token ids."""
    file = io.BytesIO()
    np.save(file, np.random.default_rng(i).integers(5, 50_000, 512).astype(np.uint16))
    return file.getvalue()


# For every modality: the ending of its files' names, the function that makes a file, and a factor
# for the number of samples. Text has five times as many, because it is read so quickly.
MADE: dict[str, tuple[str, Callable[[int], bytes], int]] = {
    "audio": ("flac", sound, 1),
    "vision": ("jpg", image, 1),
    "text": ("npy", block, 5),
}


def make(folder: Path, modality: str, n: int) -> None:
    """Write the same samples into ``folder``, as single files and as shards with an index."""
    ending, one, times = MADE[modality]
    (folder / "files").mkdir(parents=True)
    (folder / "shards").mkdir()
    for begin in range(0, n * times, SHARD):
        tar_path = folder / "shards" / f"{begin // SHARD:04d}.tar"
        with tarfile.open(tar_path, "w") as tar:
            for i in range(begin, min(n * times, begin + SHARD)):
                data, member = one(i), tarfile.TarInfo(f"{i:06d}.{ending}")
                (folder / "files" / member.name).write_bytes(data)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        build_index(tar_path)


def source_of(modality: str, data: str, folder: Path) -> Any:
    """The transform of the published recipe, with what ``make`` wrote as its data.

    Args:
        modality: audio, vision or text.
        data: ``shards`` or ``folder``, the two kinds of dataset.
        folder: where ``make`` wrote.
    """
    place = folder / ("shards" if data == "shards" else "files")
    words = [f"experiment={modality}_data2vec2_base", f"modality={modality}", f"data={data}"]
    cfg = load([*words, f"data.root={place}", "data.skipped_path=null"])
    return instantiate(cfg.transform, _convert_="all")


class Decoded:
    """A dataset that keeps decoded items in memory, so that only the transform takes time."""

    def __init__(self, items: list[Any]) -> None:
        self.read = items.__getitem__
        self.lengths = np.array([item.shape[-1] for item in items])


def ours(transform: Any, seed: int) -> Iterator[Any]:
    """Start a pass of our loader, in the order that a run would have."""
    plan = EpochOrder(transform.numbered.shard_sizes, seed, ROWS, transform.lengths)
    slots = [MicroBatch(ids, seed, ()) for ids in plan.window(0)]
    return iter(DataLoader(MicroBatches(transform), None, sampler=slots))


def rate(passes: dict[str, Callable[[int], Iterator[Any]]], repeats: int = 60) -> dict[str, float]:
    """Samples in a second of CPU time, from the fastest of ``repeats`` passes. The contestants take
    turns, so that other work on the machine disturbs all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    count = {name: sum(len(batch.ids) for batch in one(0)) for name, one in passes.items()}
    for seed in range(1, repeats + 1):
        for name, one in passes.items():
            start = time.process_time()
            deque(one(seed), 0)
            seconds[name].append(time.process_time() - start)
    return {name: count[name] / min(each) for name, each in seconds.items()}


def stages(modality: str, transform: Any) -> dict[str, float]:
    """Microseconds of CPU time that each step of reading takes for one sample."""
    dataset, n = transform.dataset, len(transform.dataset)
    places = [dataset._place(i) for i in np.random.default_rng(0).permutation(n).tolist()]
    spans = [dataset._span(*place) for place in places]
    members = [sample_of(span)[1] for span in spans]
    lengths = [int(dataset.shards[s].lengths[p]) for s, p in places]
    items = [dataset.decode(m, length) for m, length in zip(members, lengths)]
    cfg = load([f"modality={modality}", f"experiment={modality}_data2vec2_base", "data.root=."])
    mask, clones, ids = instantiate(cfg.masking), cfg.objective.clones, torch.arange(ROWS)
    whole = isinstance(transform, TokenBlocks)  # blocks of token ids are not cropped
    transform.dataset = dataset if whole else Decoded(items)
    rows = [transform.read(i, 0) for i in range(n)]
    batches = [rows[i : i + ROWS] for i in range(0, n, ROWS)]
    steps: dict[str, Callable[[], Any]] = {
        "read": lambda: [sample_of(dataset._span(*place)) for place in places],
        "decode": lambda: [dataset.decode(m, length) for m, length in zip(members, lengths)],
        "crop": lambda: None if whole else [transform.read(i, 1) for i in range(n)],
        "collate": lambda: [batched(batch) for batch in batches],
        "mask": lambda: [mask(key, ids, clones, GRID[modality]) for key in range(len(batches))],
    }
    if isinstance(transform, AudioTransform):  # as if the sounds were recorded at 8 kHz
        halves = [item[::2].copy() for item in items]
        steps["resample"] = lambda: [resampled(half, 8000) for half in halves]
    times = {name: 1e6 * min(spent(work) for _ in range(3)) / n for name, work in steps.items()}
    transform.dataset = dataset
    return times


def spent(work: Callable[[], Any]) -> float:
    """Seconds of CPU time that ``work`` takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def large(folder: str, shards: int = 1000, each: int = 1000) -> dict[str, float]:
    """Time and memory of start-up with a million sounds. The shards are sparse files without
    content, because only their indexes are read."""
    draw = np.random.default_rng(0)
    for s in range(shards):
        rows = np.zeros(each, ENTRY)
        rows["offset"], rows["bytes"] = np.arange(each) * 100_352, 100_352
        rows["length"] = draw.integers(32_000, 320_000, each)
        tar = Path(folder) / f"{s:05d}.tar"
        tar.touch()
        os.truncate(tar, each * 100_352 + 1024)
        save(Index(rows, each * 100_352 + 1024, 0), tar.with_suffix(".idx"))
    dataset = AudioShards(folder, 0.2, 120, 0.1, None, f"{folder}/cache", 1.0, None, 1)
    start, before = time.perf_counter(), _resident()
    count, opened = len(dataset), time.perf_counter() - start
    plan = EpochOrder(dataset.shard_sizes, 0, ROWS, dataset.lengths, 3_800_000)
    plan.window(0)
    begun = time.perf_counter() - start
    return {
        "samples": count,
        "indexes opened, s": opened,
        "first batch planned, s": begun,
        "memory, MB": (_resident() - before) / 1e6,
        "on the disk, MB": shards * each * ENTRY.itemsize / 1e6,
    }


def planning(count: int = 10_000_000) -> dict[str, float]:
    """Time and memory of planning a pass over ``count`` samples that are all shuffled together,
    with a limit on the length of a micro-batch."""
    lengths = np.random.default_rng(0).integers(32_000, 320_000, count).astype(np.uint32)
    before, start = _resident(), time.perf_counter()
    batches = EpochOrder(np.full(10_000, count // 10_000), 0, ROWS, lengths, 3_800_000).window(0)
    seconds, status = time.perf_counter() - start, Path("/proc/self/status").read_text()
    peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
    memory = (peak - before) / 1e6
    return {"lengths": count, "batches": len(batches), "s": seconds, "peak, MB": memory}


def _resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def alone(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """Call ``function`` in a new process, so that memory used before does not count."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def measure(modality: str, folder: Path, n: int) -> dict[str, dict[str, float]]:
    """Samples a second of all contestants, and the time of each step of ours."""
    make(folder, modality, n)
    shards = source_of(modality, "shards", folder)
    passes = {"ours, shards": lambda seed: ours(shards, seed)}
    # A folder of text is kept in memory, so that there is no reading to measure.
    if not isinstance(shards, TokenBlocks):
        files = source_of(modality, "folder", folder)
        passes["ours, folder"] = lambda seed: ours(files, seed)
    return {
        "samples a second": rate(passes | rivals(folder, MADE[modality][0], ROWS)),
        "us a sample": stages(modality, shards),
    }


def main() -> None:
    """Measure everything, print it, and write it to ``RESULTS``."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("n", nargs="?", type=int, default=60, help="number of files (60)")
    n = parser.parse_args().n
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for modality in MADE:
            result[modality] = measure(modality, Path(folder) / modality, n)
            for title, numbers in result[modality].items():
                values = [f"{name} {value:,.0f}" for name, value in numbers.items()]
                print(f"{modality}, {title}: {', '.join(values)}")
        (Path(folder) / "large").mkdir()
        result["start-up"] = alone(large, f"{folder}/large")
        result["planning"] = alone(planning)
    for title in ("start-up", "planning"):
        values = [f"{name} {value:,.2f}" for name, value in result[title].items()]
        print(f"{title}: {', '.join(values)}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result | {"load": os.getloadavg()[0]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
