"""Features of files from a pretrained encoder: ``python -m d2v_pretrain.extract run=NAME
data.root=DIR output=DIR``.

run=NAME          the run, or the path of its folder data.root=DIR     files of the run's modality;
data=… and data.key=… as for training; without, the run's own data
output=DIR        where to: names.txt, one line an item, and features.npy or a file for each item
pool=mean         mean: (items, D) in features.npy; none: (T, D), a row for each token, in
00000000.npy, …
layers=N          how many of the last blocks to average; half of them by default, as the probe does
which=teacher     teacher or student
step=N            another checkpoint than the newest
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from d2v_pretrain.checkpoint.run import PARTS, find
from d2v_pretrain.config import options as commands
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.types import Batch

OPTIONS = {
    "run": commands.NEEDED,
    "output": commands.NEEDED,
    "pool": "mean",
    "layers": None,
    "which": "teacher",
    "step": None,
}


def main(typed: Sequence[str]) -> Path:
    """Extract what was typed.

    Raises:
        ConfigError: no such run or data; something is in ``output`` already.
    """
    data, words = commands.split(typed, "data")
    chosen = commands.options(words, OPTIONS)
    write = WRITERS[commands.one_of("pool", chosen["pool"], list(WRITERS))]
    which = commands.one_of("which", chosen["which"], list(PARTS))
    run, folder = (
        find(str(chosen["run"]), commands.whole_number("step", chosen["step"])),
        Path(str(chosen["output"])),
    )
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError("output", folder, "is not empty", "type another one, or remove it")
    transform, encoder = run.transform(data, folder), run.encoder(which)
    layers = commands.whole_number("layers", chosen["layers"])
    if layers is not None and not 1 <= layers <= encoder.depth:
        raise ConfigError(
            "layers", layers, f"must be from 1 to {encoder.depth}, the blocks of the encoder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    names = write(
        folder, features(encoder.to(_device()), transform, layers or max(1, encoder.depth // 2))
    )
    (folder / "names.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    Console(soft_wrap=True, highlight=False).print(
        f"{len(names):,} items from {transform.dataset.describe()}, in {folder}"
    )
    return folder


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def features(encoder: Encoder, transform: Any, layers: int) -> Iterator[tuple[str, Tensor]]:
    """Name and (T, D) float32 of every item that can be read: the mean of the last ``layers``
    blocks' outputs.

    Items go through one by one, so that none depends on the padding of its neighbours.
    """
    device = next(encoder.parameters()).device
    name: Callable[[int], str] = getattr(
        transform.dataset, "name", str
    )  # made-up data has numbers only
    for i, item in enumerate(
        track(transform.plain(), "features", disable=not Console().is_terminal)
    ):
        if item is not None:
            encoded = encoder.encode(
                Batch(item[None].to(device), torch.tensor([i])), layers, "block"
            )
            yield name(i), torch.stack(encoded.layers).float().mean(0)[0].cpu()


def _pooled(folder: Path, items: Iterator[tuple[str, Tensor]]) -> list[str]:
    rows = [(name, tokens.mean(0).numpy()) for name, tokens in items]
    np.save(folder / "features.npy", np.array([row for _, row in rows]))
    return [name for name, _ in rows]


def _whole(folder: Path, items: Iterator[tuple[str, Tensor]]) -> list[str]:
    names: list[str] = []
    for name, tokens in items:
        np.save(folder / f"{len(names):08}.npy", tokens.numpy())
        names.append(name)
    return names


WRITERS = {"mean": _pooled, "none": _whole}


if __name__ == "__main__":
    commands.run(main, __doc__)
