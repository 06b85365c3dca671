"""Features of a folder of files from a run's encoder: ``python -m d2v_pretrain.extract``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from d2v_pretrain.checkpoint.saved_run import find
from d2v_pretrain.config import options as commands
from d2v_pretrain.config.options import Words
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.types import Batch
from d2v_pretrain.weights.gate import Gate


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write the features that a run's encoder gives for files.

    The output folder gets names.txt with one line for each item, and the features: features.npy of
    shape (items, D), or with pool=none a file 00000000.npy, … of shape (T, D) for each item.

    Usage: d2v-pretrain extract run=NAME data.root=DIR output=DIR [key=value …]
       or: python -m d2v_pretrain.extract run=NAME data.root=DIR output=DIR [key=value …]

    Examples:
      d2v-pretrain extract run=my_run data.root=recordings output=features
      d2v-pretrain extract run=my_run data.root=recordings output=features pool=none layers=1
      d2v-pretrain extract run=runs/my_run which=student step=5000 output=features
    """

    run: Annotated[str, "a run's name, or the path of its folder"]
    output: Annotated[str, "folder to write to; must be new or empty"]
    data: Annotated[
        Words,
        "files of the run's modality: data=… and data.KEY=… as in training, where data.root=DIR "
        "alone is a folder of files; by default the run's own data",
    ] = ()
    pool: Annotated[
        Literal["mean", "none"], "mean over the tokens of an item, or a row for each token"
    ] = "mean"
    layers: Annotated[
        int | None, "average the outputs of this many last blocks; null takes half of them", 1
    ] = None
    which: Annotated[Literal["teacher", "student"], "whose weights"] = "teacher"
    trust: Annotated[
        str | None,
        "packages, with commas, whose classes the run's encoder may be made of; null allows only "
        "those of d2v_pretrain",
    ] = None
    step: Annotated[int | None, "of the checkpoint; null takes the newest", 0] = None


def main(typed: Sequence[str]) -> Path:
    """Write the features.

    Returns:
        The output folder.

    Raises:
        ConfigError: no such run or data; something is in the output folder already.
    """
    options = commands.read(Options, typed)
    run, folder = find(options.run, options.step, Gate.typed(options.trust)), Path(options.output)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError("output", folder, "is not empty", "type another one, or remove it")
    transform, encoder = run.transform(options.data, folder), run.encoder(options.which)
    layers = number_of_layers(encoder, options.layers)
    encoder.to("cuda" if torch.cuda.is_available() else "cpu")
    folder.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    rows: list[np.ndarray] = []
    for name, tokens in features(encoder, transform, layers):
        if options.pool == "none":
            np.save(folder / f"{len(names):08}.npy", tokens.numpy())
        else:
            rows.append(tokens.mean(0).numpy())
        names.append(name)
    if options.pool == "mean":
        np.save(folder / "features.npy", np.array(rows))
    (folder / "names.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    line = f"{len(names):,} items from {transform.dataset.describe()}, in {folder}"
    Console(soft_wrap=True, highlight=False).print(line)
    return folder


def features(encoder: Encoder, transform: Any, layers: int) -> Iterator[tuple[str, Tensor]]:
    """For every readable item of a transform its name and its features (tokens, width); see
    ``token_features``.

    Items are encoded one at a time, because in a batch their features could depend on padding.
    """
    items = track(transform.plain(), "features", disable=not Console().is_terminal)
    for i, item in enumerate(items):
        if item is not None:
            yield transform.dataset.name(i), token_features(encoder, item[None], layers)[0]


@torch.no_grad()
def token_features(encoder: Encoder, inputs: Tensor, layers: int) -> Tensor:
    """The mean of the outputs of the last ``layers`` blocks, without extra tokens (CLS): (batch,
    tokens, width) float32 on the CPU.

    Args:
        encoder: in evaluation mode.
        inputs: a batch of prepared inputs of equal length, without padding.
        layers: from 1 to the number of blocks.
    """
    device = next(encoder.parameters()).device
    batch = Batch(inputs.to(device), torch.arange(len(inputs)))
    encoded = encoder.encode(batch, layers, "block")
    return torch.stack(encoded.layers).float().mean(0).cpu()


def number_of_layers(encoder: Encoder, layers: int | None) -> int:
    """``layers``; if it is None, half the number of the encoder's blocks, as in the probe.

    Raises:
        ConfigError: the encoder has fewer blocks than that.
    """
    if layers is not None and not 1 <= layers <= encoder.depth:
        rule = f"must be from 1 to {encoder.depth}, the number of blocks of the encoder"
        raise ConfigError("layers", layers, rule)
    return layers or max(1, encoder.depth // 2)


if __name__ == "__main__":
    commands.run(main, Options)
