"""Image -> patches: one strided convolution, or overlapping edge filters for tiny models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.models.stems.base import Stem
from d2v_pretrain.types import Batch, Tokens


class VisionStem(Stem):
    """Patches of ``patch`` x ``patch`` pixels, each through one linear map, in row-major order.

    Source: BEiT ``PatchEmbed`` (``init=trunc``: normal, std .02), MAE as used by fairseq
    (``init=xavier``: uniform on the flattened kernel).

    Args:
        width: D, channels of a token.
        patch: side of a patch in pixels, or (height, width); image sides must be multiples of it.
        channels: colour channels.
        masked: learn a mask vector (data2vec 1).
        init: ``xavier`` or ``trunc``.
    """

    reads = "image"

    def __init__(
        self,
        width: int,
        patch: int | tuple[int, int],
        channels: int = 3,
        masked: bool = False,
        init: str = "xavier",
    ) -> None:
        super().__init__()
        assert init in ("xavier", "trunc"), f"unknown stem init {init!r}: xavier or trunc"
        self.patch = (patch, patch) if isinstance(patch, int) else patch
        self.projection = nn.Conv2d(channels, width, self.patch, self.patch)
        if masked:
            self.mask_vector = nn.Parameter(
                nn.init.trunc_normal_(torch.empty(width), std=0.02, a=-0.02, b=0.02)
            )
        if init == "xavier":
            nn.init.xavier_uniform_(self.projection.weight.flatten(1))
        else:
            nn.init.trunc_normal_(self.projection.weight, std=0.02, a=-0.02, b=0.02)
            nn.init.zeros_(self.projection.bias)  # type: ignore[arg-type]

    def forward(self, batch: Batch) -> Tokens:
        """Images (B, C, H, W) -> tokens (B, H/p * W/p, D) on a grid (H/p, W/p); p is ``patch``."""
        x = self.projection(batch.inputs)
        return Tokens(x.flatten(2).transpose(1, 2), self.grid(batch.inputs.shape))

    def grid(self, shape: torch.Size) -> tuple[int, ...]:
        """(rows, columns) of patches for images of shape (B, C, height, width)."""
        return _patches(shape, *self.patch)

    def check(self, shape: tuple[int, ...]) -> None:
        """See ``Stem``."""
        _check_side(shape, self.patch[0])


class EdgeStem(Stem):
    """Patches from overlapping filters, GELU and an average: edges and textures, whatever the sign
    of their contrast.

    Not published; for tiny models. Filters of ``kernel`` pixels are ``patch / 2`` apart, and the
    outputs at four places are averaged to a token. As with ``smooth`` of ``AudioStem`` the initial
    weights matter: filters are smooth, do not respond to flat colour and come in pairs of opposite
    sign, and their rectified outputs are averaged. The targets then depend on the image from the
    first step on.

    Args:
        width: D, channels of a token.
        patch: side of a patch in pixels, even.
        filters: channels of the first convolution, even.
        kernel: side of its filters in pixels, even; more than ``patch / 2`` overlaps.
        channels: colour channels.
        masked: learn a mask vector (data2vec 1).
    """

    reads = "image"

    def __init__(
        self,
        width: int,
        patch: int,
        filters: int,
        kernel: int,
        channels: int = 3,
        masked: bool = False,
    ) -> None:
        super().__init__()
        self.patch, half = patch, patch // 2
        self.filters = nn.Conv2d(channels, filters, kernel, half, (kernel - half) // 2)
        self.projection = nn.Conv2d(filters, width, 2, 2)
        if masked:
            self.mask_vector = nn.Parameter(
                nn.init.trunc_normal_(torch.empty(width), std=0.02, a=-0.02, b=0.02)
            )
        _start_as_edges(self.filters)
        with torch.no_grad():
            mixing = torch.randn(width, filters, 1, 1) / filters**0.5
            self.projection.weight.copy_(mixing.expand_as(self.projection.weight) / 4)

    def forward(self, batch: Batch) -> Tokens:
        """Images (B, C, H, W) -> tokens (B, H/p * W/p, D) on a grid (H/p, W/p); p is ``patch``."""
        x = self.projection(F.gelu(self.filters(batch.inputs)))
        return Tokens(x.flatten(2).transpose(1, 2), self.grid(batch.inputs.shape))

    def grid(self, shape: torch.Size) -> tuple[int, ...]:
        """(rows, columns) of patches for images of shape (B, C, height, width)."""
        return _patches(shape, self.patch, self.patch)

    def check(self, shape: tuple[int, ...]) -> None:
        """See ``Stem``."""
        _check_side(shape, self.patch)


@torch.no_grad()
def _start_as_edges(conv: nn.Conv2d) -> None:
    """Filters of norm 1 and mean 0, smoothed over 3 x 3 pixels; the second half is the negative of
    the first.
    """
    drawn = torch.randn_like(conv.weight[::2])
    smooth = F.avg_pool2d(F.pad(drawn, (1, 1, 1, 1), mode="reflect"), 3, 1)
    smooth = smooth - smooth.mean((2, 3), keepdim=True)
    smooth = smooth / smooth.flatten(1).norm(dim=1)[:, None, None, None]
    conv.weight.copy_(torch.cat([smooth, -smooth]))
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]


def _patches(shape: torch.Size, height: int, width: int) -> tuple[int, int]:
    assert shape[2] % height == 0 and shape[3] % width == 0, (
        f"image {tuple(shape[2:])} / patch {height, width}"
    )
    return (shape[2] // height, shape[3] // width)


def _check_side(shape: tuple[int, ...], patch: int) -> None:
    if shape[-1] % patch:
        rule = f"must be a multiple of architecture.stem.patch={patch}"
        raise ConfigError(
            "transform.size", shape[-1], rule, f"type transform.size={shape[-1] // patch * patch}"
        )
