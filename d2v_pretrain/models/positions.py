"""Positions: offsets added to tokens (convolution, sin-cos, learned) and biases added to attention
(ALiBi, relative).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from d2v_pretrain.models.conv import GroupedConv1d, conv_last
from d2v_pretrain.types import Tokens


class Positions(nn.Module):
    """Offsets that are added to the tokens of a stem: B rows of T tokens of D channels."""

    def forward(self, tokens: Tokens) -> Tensor:
        """(1 or B, T, D) offsets for (B, T, D) tokens."""
        raise NotImplementedError

    def placed_extra(self, extra: Tensor) -> Tensor:
        """The extra tokens (1, E, D), with offsets added if this class has offsets for them."""
        return extra


class ConvPositions(Positions):
    """Offsets from ``depth`` grouped convolutions over time, each followed by LayerNorm (no affine)
    and GELU.

    Source: fairseq ``TransformerEncoder`` with ``pos_conv_depth`` > 1; data2vec 2's
    ``relative_positional_encoder``. wav2vec 2.0 (``make_conv_pos``) has one convolution of 128
    steps, without LayerNorm and with ``weight_norm``.

    Args:
        width: D, channels of a token.
        depth: number of convolutions.
        total_kernel: sum of the kernel sizes; each is ``max(3, total_kernel // depth)``, and
            padding keeps the number of tokens.
        groups: convolution groups.
        mask_padding: zero the padding before each convolution, so that a row gives the same in any
            batch. The published models do not, so their output at the last valid frames depends on
            the amount of padding, and gradients pass through it; False does the same. All recipes
            set it.
        activation: after each LayerNorm.
        layer_norm: each convolution is followed by LayerNorm.
        weight_norm: the weight of a convolution is learned as a direction, and a length for each of
            its steps.
    """

    def __init__(
        self,
        width: int,
        depth: int = 5,
        total_kernel: int = 95,
        groups: int = 16,
        mask_padding: bool = False,
        activation: Callable[[Tensor], Tensor] = F.gelu,
        layer_norm: bool = True,
        weight_norm: bool = False,
    ) -> None:
        super().__init__()
        self.activation, self.layer_norm, self.weight_norm = activation, layer_norm, weight_norm
        kernel = max(3, total_kernel // depth)
        self.convs = nn.ModuleList(
            GroupedConv1d(width, width, kernel, padding=kernel // 2, groups=groups)
            for _ in range(depth)
        )
        self.mask_padding = mask_padding
        if weight_norm:
            for conv in self.convs:
                assert isinstance(conv, nn.Conv1d) and conv.bias is not None
                nn.init.normal_(conv.weight, std=(4 / (kernel * width)) ** 0.5)
                nn.init.zeros_(conv.bias)
                parametrizations.weight_norm(conv, dim=2)

    def forward(self, tokens: Tokens) -> Tensor:
        """(B, T, D) -> (B, T, D) offsets."""
        x = tokens.x
        for conv in self.convs:
            if self.mask_padding and tokens.valid is not None:
                x = x.masked_fill(~tokens.valid[..., None], 0)
            x = conv_last(x, conv)[:, : tokens.x.shape[1]]  # an even kernel gives one step too many
            x = self.activation(F.layer_norm(x, x.shape[-1:]) if self.layer_norm else x)
        return x


class SinCosPositions(Positions):
    """Fixed offsets: sines and cosines of the column in the first half of the channels, of the row
    in the second.

    Frequencies are ``10000^(-i / (D/4))``. Source: MAE ``get_2d_sincos_pos_embed``.

    Args:
        width: D, channels of a token, a multiple of 4.
        scale: factor on the offsets; 1 is the published value.
    """

    def __init__(self, width: int, scale: float = 1.0) -> None:
        super().__init__()
        assert width % 4 == 0, f"width {width} must be a multiple of 4"
        self.width, self.scale = width, scale

    def forward(self, tokens: Tokens) -> Tensor:
        """(1, T, D) offsets for a grid of (rows, columns)."""
        rows, columns = tokens.grid
        channels, device = self.width // 4, tokens.x.device
        frequency = 10000.0 ** (
            -torch.arange(channels, device=device, dtype=torch.float64) / channels
        )
        x = torch.arange(columns, device=device).repeat(rows)[:, None] * frequency
        y = torch.arange(rows, device=device).repeat_interleave(columns)[:, None] * frequency
        offsets = self.scale * torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], 1)
        return offsets.to(tokens.x.dtype)[None]


class LearnedPositions(Positions):
    """Offsets from a learned table with one row for each extra token and each patch.

    The table is zero at the start. For another grid the part for patches is resized bicubically.
    Source: BEiT and ViT ``interpolate_pos_encoding``, which assume a square grid.

    Args:
        width: D, channels of a token.
        grid: (rows, columns) of patches that the table is made for.
        extra: E, the number of extra tokens in front.
    """

    def __init__(self, width: int, grid: tuple[int, int], extra: int = 1) -> None:
        super().__init__()
        self.window, self.extra = grid, extra
        self.table = nn.Parameter(torch.zeros(1, extra + grid[0] * grid[1], width))

    def placed_extra(self, extra: Tensor) -> Tensor:
        return extra + self.table[:, : self.extra]

    def forward(self, tokens: Tokens) -> Tensor:
        """(1, T, D) offsets for a grid of (rows, columns)."""
        table = self.table[:, self.extra :]
        if tokens.grid == self.window:
            return table
        image = table.unflatten(1, self.window).permute(0, 3, 1, 2)
        resized = F.interpolate(image, tokens.grid, mode="bicubic", align_corners=False)
        return resized.flatten(2).transpose(1, 2)


class Alibi(nn.Module):
    """Attention bias ``-slope_h |i - j| scale_h``: symmetric ALiBi with one learned scale per head,
    shared by all layers.

    The slope of head h of H is ``2^(-8 (h+1) / H)`` if H is a power of two, else those of the next
    lower power of two followed by every other one of its double. A negative scale acts as 0 and
    then has no gradient, as published. The bias is computed for visible positions only; the
    reference computes it for all positions and then selects. Source: fairseq
    ``modalities/base.py:get_alibi``.

    Args:
        heads: H, number of attention heads.
    """

    slopes: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(heads))
        self.register_buffer("slopes", torch.tensor(alibi_slopes(heads)), persistent=False)

    def forward(self, grid: tuple[int, ...], kept: Tensor | None, extra: int) -> Tensor:
        """The bias of K visible and E extra tokens in R rows: (1 or R, H, E + K, E + K) float32. It
        is 0 to and from extra tokens.

        Args:
            grid: token grid.
            kept: (R, K) visible positions, or None for all.
            extra: E, the number of extra tokens in front.
        """
        every = torch.arange(math.prod(grid), device=self.slopes.device)[None]
        place = every if kept is None else kept
        distance = (place[:, :, None] - place[:, None, :]).abs().to(self.slopes.dtype)
        bias = -(self.slopes * self.scale.clamp(min=0))[:, None, None] * distance[:, None]
        return F.pad(bias, (extra, 0, extra, 0))


def alibi_slopes(heads: int) -> list[float]:
    """The H slopes of ALiBi (Press et al., 2022)."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    return slopes if power == heads else slopes + alibi_slopes(2 * power)[0::2][: heads - power]


class RelativeBias(nn.Module):
    """Attention bias from one table per head, indexed by the offset between two patches.

    The table has ``(2 rows - 1)(2 columns - 1) + 3`` rows, the last three for CLS to patch, patch
    to CLS and CLS to CLS; it is zero at the start. The index is computed anew and is not a buffer:
    the reference's teacher averages that buffer, which makes it wrong by one. Source: BEiT
    ``RelativePositionBias``.

    Args:
        heads: number of attention heads.
        grid: (rows, columns) of patches that the table is made for.
        resize: accept other grids, for which the table is resized bilinearly (MiDaS 3.1). Otherwise
            other grids are an error.
    """

    def __init__(self, heads: int, grid: tuple[int, int], resize: bool = False) -> None:
        super().__init__()
        self.window, self.resize = (int(grid[0]), int(grid[1])), resize
        size = (2 * self.window[0] - 1) * (2 * self.window[1] - 1)
        self.table = nn.Parameter(torch.zeros(size + 3, heads))

    def forward(self, grid: tuple[int, ...], kept: Tensor | None, extra: int) -> Tensor:
        """The bias; see ``Alibi.forward``. There may be one extra token at most."""
        assert extra <= 1, "the table knows one CLS token"
        table = self._table(grid)
        every = torch.arange(math.prod(grid), device=self.table.device)[None]
        place = every if kept is None else kept
        row, column = place // grid[1], place % grid[1]
        down = row[:, :, None] - row[:, None, :] + grid[0] - 1
        right = column[:, :, None] - column[:, None, :] + grid[1] - 1
        index = down * (2 * grid[1] - 1) + right
        if extra:
            size = table.shape[0]
            index = F.pad(F.pad(index, (0, 0, 1, 0), value=size - 3), (1, 0, 0, 0), value=size - 2)
            index[:, 0, 0] = size - 1
        return F.embedding(index, table).permute(0, 3, 1, 2)

    def _table(self, grid: tuple[int, ...]) -> Tensor:
        if tuple(grid) == self.window:
            return self.table
        assert self.resize, f"grid {grid} does not fit the table of {self.window}"
        rows, columns = (2 * side - 1 for side in self.window)
        image = self.table[:-3].view(1, rows, columns, -1).permute(0, 3, 1, 2)
        size = [2 * side - 1 for side in grid]
        resized = F.interpolate(image, size, mode="bilinear", align_corners=False)
        return torch.cat([resized.permute(0, 2, 3, 1).flatten(0, 2), self.table[-3:]])
