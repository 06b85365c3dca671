"""Small shards, made with Python's tarfile, and the datasets over them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image
from torch.utils.data import DataLoader

from d2v_pretrain.types import Batch
from datamodules.module import MicroBatches
from datamodules.order import EpochOrder, StepSampler
from datamodules.shards.audio import AudioShards
from datamodules.shards.image import ImageShards
from datamodules.shards.text import TextShards
from datamodules.transforms.base import Samples


def write(
    path: Path, members: Sequence[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def flac(seconds: float, rate: int = 16_000, seed: int = 0) -> bytes:
    file = io.BytesIO()
    wave = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))
    soundfile.write(file, wave, rate, format="FLAC")
    return file.getvalue()


def npy(ids: Sequence[int]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(ids, np.uint16))
    return file.getvalue()


def png(seed: int, size: tuple[int, int] = (12, 10)) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def sounds(root: Path, shards: int = 5, most: int = 6) -> int:
    """Shards of different sizes, each sound of another length; how many sounds there are."""
    n = 0
    for s in range(shards):
        rows = []
        for _ in range(1 + (s * 3 + 2) % most):
            rows += [
                (f"{n:04d}.flac", flac(0.2 + 0.01 * n, seed=n)),
                (f"{n:04d}.cls", b"%d" % (n % 2)),
            ]
            n += 1
        write(root / f"s-{s:03d}.tar", rows)
    return n


def _settings(root: Any, tmp: Path, changes: dict[str, Any]) -> dict[str, Any]:
    usual = {
        "max_bad_share": 0.5,
        "skipped_path": str(tmp / "skipped.jsonl"),
        "cache_folder": str(tmp / "cache"),
        "cache_gb": 1.0,
        "label_key": None,
        "test_shards": 1,
    }
    return {"root": root if isinstance(root, list) else str(root), **usual, **changes}


def audio(root: Any, tmp: Path, **changes: Any) -> AudioShards:
    return AudioShards(**{"min_seconds": 0.1, "max_seconds": 10, **_settings(root, tmp, changes)})


def images(root: Any, tmp: Path, **changes: Any) -> ImageShards:
    return ImageShards(**_settings(root, tmp, changes))


def texts(root: Any, tmp: Path, **changes: Any) -> TextShards:
    return TextShards(**{"vocab_size": 1000, **_settings(root, tmp, changes)})


def batches(
    transform: Samples,
    plan: EpochOrder,
    workers: int = 0,
    world: int = 1,
    slots: int = 4,
    readers: int = 1,
    **more: Any,
) -> list[Iterator[Batch]]:
    """The micro-batches of each rank, through DataLoader workers."""
    prefetch = transform.numbered.prefetch
    streams = [
        StepSampler(plan, slots, rank, world, (), readers, prefetch) for rank in range(world)
    ]
    return [
        iter(DataLoader(MicroBatches(transform), None, sampler=stream, num_workers=workers))
        for stream in streams
    ]
