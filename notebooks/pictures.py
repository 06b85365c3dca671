"""Pictures of the method: a mask over a sample of each modality. ``python -m notebooks.pictures
docs/masks.png``."""

from __future__ import annotations

import sys
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from hydra.utils import instantiate
from matplotlib.axes import Axes

from d2v_pretrain.config.compose import load
from d2v_pretrain.types import Batch, Mask

MODALITIES = ("audio", "vision", "text")
HIDDEN = "#d1495b"


def example(modality: str) -> tuple[Any, Any, Batch]:
    """The default run of a modality: its objective (untrained), its datamodule and its first
    micro-batch."""
    cfg = load([f"modality={modality}"])
    torch.manual_seed(cfg.seed)
    objective, data = (
        instantiate(cfg.objective, _convert_="all"),
        instantiate(cfg.datamodule, _convert_="all"),
    )
    return objective, data, next(data.batches())


def draw(modality: str, ax: Axes, objective: Any, data: Any, batch: Batch, mask: Mask) -> None:
    """Draw the first sample of a batch on ``ax`` with its first mask over it; masked tokens are
    red."""
    {"audio": _audio, "vision": _vision, "text": _text}[modality](
        ax, objective, data, batch, mask.masked[0]
    )


def _audio(ax: Axes, objective: Any, data: Any, batch: Batch, masked: torch.Tensor) -> None:
    samples = batch.inputs.shape[1] if batch.lengths is None else int(batch.lengths[0])
    hop = batch.inputs.shape[1] / len(masked)
    ax.plot(np.arange(samples) / 16_000, batch.inputs[0, :samples], lw=0.3, color="black")
    for frame in masked.nonzero()[:, 0].tolist():
        ax.axvspan(frame * hop / 16_000, (frame + 1) * hop / 16_000, color=HIDDEN, alpha=0.5, lw=0)
    ax.set(
        xlabel="seconds",
        yticks=[],
        title=f"audio: {int(masked.sum())} of {len(masked)} frames to predict",
    )


def _vision(ax: Axes, objective: Any, data: Any, batch: Batch, masked: torch.Tensor) -> None:
    image = batch.inputs[0].permute(1, 2, 0)
    image = (image - image.amin()) / (image.amax() - image.amin())
    side = image.shape[0] // objective.student.stem.grid(batch.inputs.shape)[0]
    cells = masked.view(objective.student.stem.grid(batch.inputs.shape)).repeat_interleave(side, 0)
    overlay = np.zeros((*image.shape[:2], 4))
    overlay[cells.repeat_interleave(side, 1).numpy()] = (
        *[int(HIDDEN[i : i + 2], 16) / 255 for i in (1, 3, 5)],
        0.75,
    )
    ax.imshow(image)
    ax.imshow(overlay)
    ax.set(
        xticks=[],
        yticks=[],
        title=f"vision: {int(masked.sum())} of {len(masked)} patches to predict",
    )


def _text(ax: Axes, objective: Any, data: Any, batch: Batch, masked: torch.Tensor) -> None:
    words = [
        data.transform.vocabulary.tokenizer.decode([i], skip_special_tokens=False)
        for i in batch.inputs[0].tolist()
    ]
    columns = 8
    for place, (word, hidden) in enumerate(zip(words, masked.tolist(), strict=True)):
        row, column = divmod(place, columns)
        style = {
            "facecolor": HIDDEN if hidden else "white",
            "alpha": 0.5,
            "edgecolor": "none",
            "pad": 1.5,
        }
        ax.text(
            column / columns,
            1 - (row + 0.5) * columns / len(words),
            word.strip() or "·",
            fontsize=7,
            bbox=style,
        )
    ax.axis("off")
    ax.set(title=f"text: {int(masked.sum())} of {len(masked)} tokens to predict")


def main(path: str) -> None:
    """Write the three pictures side by side to ``path``."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 3.6), gridspec_kw={"width_ratios": [2, 1, 2]})
    for modality, ax in zip(MODALITIES, axes, strict=True):
        objective, data, batch = example(modality)
        draw(modality, ax, objective, data, batch, objective.draw(batch))
    figure.tight_layout()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main(sys.argv[1])
