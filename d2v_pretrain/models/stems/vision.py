"""Image -> patches: one strided convolution."""

from __future__ import annotations

import torch
from torch import nn

from d2v_pretrain.models.stems.base import Stem
from d2v_pretrain.types import Batch, Tokens


class VisionStem(Stem):
    """Patches of ``patch`` x ``patch`` pixels, each through one linear map, in row-major order.

    Source: BEiT ``PatchEmbed`` (``init=trunc``: normal, std .02), MAE as used by fairseq (``init=xavier``: uniform on
    the flattened kernel).

    Args:
        width: D of the tokens.
        patch: side of a patch in pixels; image sides must be multiples of it.
        channels: colour channels.
        masked: learn a mask vector (data2vec 1).
        init: ``xavier`` or ``trunc``.
    """

    def __init__(self, width: int, patch: int, channels: int = 3, masked: bool = False, init: str = "xavier") -> None:
        super().__init__()
        assert init in ("xavier", "trunc"), f"unknown stem init {init!r}: xavier or trunc"
        self.patch = patch
        self.projection = nn.Conv2d(channels, width, patch, patch)
        if masked:
            self.mask_vector = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02, a=-0.02, b=0.02))
        if init == "xavier":
            nn.init.xavier_uniform_(self.projection.weight.flatten(1))
        else:
            nn.init.trunc_normal_(self.projection.weight, std=0.02, a=-0.02, b=0.02)
            nn.init.zeros_(self.projection.bias)  # type: ignore[arg-type]

    def forward(self, batch: Batch) -> Tokens:
        """(B, C, H, W) -> (B, H/p * W/p, D) with grid (H/p, W/p)."""
        x = self.projection(batch.inputs)
        return Tokens(x.flatten(2).transpose(1, 2), self.grid(batch.inputs.shape))

    def grid(self, shape: torch.Size) -> tuple[int, ...]:
        """(H/p, W/p) for (B, C, H, W)."""
        assert shape[2] % self.patch == 0 and shape[3] % self.patch == 0, (
            f"image {tuple(shape[2:])} / patch {self.patch}"
        )
        return (shape[2] // self.patch, shape[3] // self.patch)
