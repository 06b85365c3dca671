"""Two usual ways to read training data with PyTorch: webdataset over shards, and a DataLoader over
single files. ``benchmarks.data`` compares ours with them.

Both decode, crop and augment as the published data2vec 2.0 recipes do, and pad a batch as we do."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import webdataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from datamodules.datasets.probe_tasks import collate

AUGMENT = v2.Compose(
    [
        v2.RandomResizedCrop(224, (0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
        v2.RandomHorizontalFlip(),
    ]
)


def to_sound(data: bytes) -> Tensor:
    """Decode a sound, normalise it, and crop it to 20 s."""
    wave = torch.from_numpy(soundfile.read(io.BytesIO(data), dtype="float32")[0])
    wave = torch.nn.functional.layer_norm(wave, wave.shape)
    start = int(torch.randint(max(1, len(wave) - 320_000 + 1), ()))
    return wave[start : start + 320_000]


def to_image(data: bytes) -> Tensor:
    """Decode an image and augment it. It stays in 8 bits, as ours does."""
    return AUGMENT(v2.functional.pil_to_tensor(Image.open(io.BytesIO(data)).convert("RGB")))


def to_block(data: bytes) -> Tensor:
    """Decode a block of token ids."""
    return torch.from_numpy(np.load(io.BytesIO(data)).astype(np.int64))


# For every ending of a file's name: what makes a tensor from the file's content.
FINISH: dict[str, Callable[[bytes], Tensor]] = {
    "flac": to_sound,
    "jpg": to_image,
    "npy": to_block,
}


class Files(Dataset[Tensor]):
    """A dataset with one file for each item."""

    def __init__(self, files: list[Path], finish: Callable[[bytes], Tensor]) -> None:
        self.files, self.finish = files, finish

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Tensor:
        return self.finish(self.files[i].read_bytes())


def batched(rows: list[Tensor]) -> Any:
    """Pad rows and stack them, with the function that we use too."""
    return collate(rows, np.arange(len(rows)))


def rivals(folder: Path, ending: str, rows: int) -> dict[str, Callable[[int], Iterator[Any]]]:
    """Functions that start a pass over the data in ``folder``, given a seed.

    Args:
        folder: has the same samples in ``files`` and in ``shards``.
        ending: of the files' names; see ``FINISH``.
        rows: samples of a batch.
    """
    tars, files = sorted((folder / "shards").glob("*.tar")), sorted((folder / "files").iterdir())
    finish = FINISH[ending]

    def streamed(seed: int) -> Iterator[Any]:
        pipeline = webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False)
        decoded = pipeline.shuffle(100, seed=seed).map(lambda sample: finish(sample[ending]))
        return iter(decoded.batched(rows, collation_fn=batched))

    def loaded(seed: int) -> Iterator[Any]:
        order = torch.Generator().manual_seed(seed)
        dataset = Files(files, finish)
        return iter(DataLoader(dataset, rows, shuffle=True, collate_fn=batched, generator=order))

    return {"webdataset": streamed, "DataLoader over files": loaded}


if __name__ == "__main__":
    print(__doc__)
