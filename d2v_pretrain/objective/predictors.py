"""Predictors map the student's output to predictions at masked positions: a small head, or a
convolutional decoder.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_pretrain.models.conv import GroupedConv1d, conv_last
from d2v_pretrain.models.encoder import gather_rows
from d2v_pretrain.models.init import initialise_linear
from d2v_pretrain.types import Mask


class Head(nn.Module):
    """data2vec 1: Linear(D, D), or Linear(D, ratio D) - GELU - Linear(D), at the masked positions
    only.

    Source: fairseq ``final_proj``, ``regression_head``; BEiT ``lm_head``.

    Args:
        width: D, the width of the student.
        layers: number of linear layers, 1 or 2.
        ratio: hidden width of two layers as a multiple of D.
        init: of the linear layers, ``default``, ``bert`` or ``beit``.
    """

    fills_gaps = False  # it needs the student's output at every token

    def __init__(
        self, width: int, layers: int = 1, ratio: float = 2.0, init: str = "default"
    ) -> None:
        super().__init__()
        self.projection = projection(width, width, layers, ratio, init)

    def forward(
        self,
        x: Tensor,
        mask: Mask,
        grid: tuple[int, ...],
        noise: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """The student's output (R, T, D) for R rows of T tokens -> (N, D) predictions at the N
        masked positions. The student must have encoded all T positions."""
        assert x.shape[1] == mask.masked.shape[1], (
            "a head needs a view that replaces masked tokens, not one that drops them"
        )
        return self.projection(x.reshape(-1, x.shape[-1])[mask.index])


class ConvDecoder(nn.Module):
    """data2vec 2: noise at the dropped positions, then convolutions over the whole grid, then a
    projection at the masked positions.

    Layer i: convolution (same size) -> LayerNorm over channels (no affine, eps 1e-5) -> GELU, plus
    its input where ``residual`` and the channel counts agree. Source: fairseq
    ``modalities/modules.py:Decoder1d, Decoder2d``.

    Args:
        width: D, the width of the student.
        dim: channels of the convolutions.
        kernel: side of the convolutions, in tokens.
        layers: number of convolutions.
        groups: groups of each convolution.
        dims: dimensions of the token grid, 1 for sequences or 2 for images.
        residual: add a layer's input to its output.
        input_dropout: on the student's output.
        noise_std: of the normal noise in place of masked tokens.
        projection_layers: number of linear layers of the projection, 1 or 2.
        projection_ratio: hidden width of a two-layer projection as a multiple of ``dim``.
        init: of the projection, ``default`` or ``bert``.
        mask_padding: zero the padding before each convolution, so that a row's predictions are the
            same in any batch. The reference does not; False does the same.
    """

    fills_gaps = True

    def __init__(
        self,
        width: int,
        dim: int,
        kernel: int,
        layers: int,
        groups: int = 16,
        dims: int = 1,
        residual: bool = True,
        input_dropout: float = 0.0,
        noise_std: float = 0.01,
        projection_layers: int = 1,
        projection_ratio: float = 2.0,
        init: str = "default",
        mask_padding: bool = True,
    ) -> None:
        super().__init__()
        channels = [width] + [dim] * layers
        conv = {1: GroupedConv1d, 2: nn.Conv2d}[dims]
        self.convs = nn.ModuleList(
            conv(before, dim, kernel, padding=kernel // 2, groups=groups)
            for before in channels[:-1]
        )
        self.projection = projection(dim, width, projection_layers, projection_ratio, init)
        self.dims, self.residual = dims, residual
        self.input_dropout, self.noise_std = input_dropout, noise_std
        self.mask_padding = mask_padding

    def forward(
        self,
        x: Tensor,
        mask: Mask,
        grid: tuple[int, ...],
        noise: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Predict the masked positions.

        Args:
            x: the student's output for R masked copies of samples: (R, K, D) at the K visible
                positions of each, or (R, T, D) at all T positions.
            mask: of the R rows. It marks the positions to predict, N over all rows, and the
                positions that the student was not given ("dropped").
            grid: shape of the token grid; the product is T.
            noise: (R, T, D) to use at the dropped positions instead of fresh noise.
            valid: (R, T) bool, False at padding; None if there is none.

        Returns:
            (N, D) predictions.
        """
        y = self.decode(self.fill(x, mask, noise), grid, valid)
        return self.projection(y.reshape(-1, y.shape[-1])[mask.index])

    def fill(self, x: Tensor, mask: Mask, noise: Tensor | None = None) -> Tensor:
        """(R, T, D): the visible tokens at their positions, and noise at the dropped positions."""
        x = F.dropout(x, self.input_dropout, self.training)
        size = mask.masked.shape[1]
        if x.shape[1] == size:
            return x
        assert mask.restore is not None
        gaps = x.new_empty(x.shape[0], size - x.shape[1], x.shape[2]).normal_(0, self.noise_std)
        full = gather_rows(torch.cat([x, gaps], 1), mask.restore)
        if noise is None:
            return full
        dropped = mask.restore >= x.shape[1]
        return torch.where(dropped[..., None], noise.to(full.dtype), full)

    def decode(self, x: Tensor, grid: tuple[int, ...], valid: Tensor | None = None) -> Tensor:
        """The convolutions: (R, T, D) -> (R, T, dim), before the projection. For ``valid`` see
        ``forward``."""
        sides = grid if self.dims > 1 else (x.shape[1],)
        x = x.unflatten(1, sides)
        padding = None
        if valid is not None and self.mask_padding:
            padding = ~valid.unflatten(1, sides)[..., None]
        for conv in self.convs:
            x = x if padding is None else x.masked_fill(padding, 0)
            y = conv_last(x, conv)
            for axis, side in enumerate(sides, start=1):  # an even kernel gives one step too many
                y = y.narrow(axis, 0, side)
            y = F.gelu(F.layer_norm(y, y.shape[-1:]))
            x = x + y if self.residual and x.shape[-1] == y.shape[-1] else y
        return x.flatten(1, -2)


def projection(width: int, out: int, layers: int, ratio: float, init: str) -> nn.Sequential:
    """Linear, or Linear - GELU - Linear, from ``width`` to ``out`` with ``int(width * ratio)`` in
    between."""
    assert layers in (1, 2), f"a projection has 1 or 2 layers, not {layers}"
    hidden = int(width * ratio)
    sizes = [(width, out)] if layers == 1 else [(width, hidden), (hidden, out)]
    linears = [nn.Linear(*size) for size in sizes]
    for linear in linears:
        initialise_linear(linear, init)
    return nn.Sequential(*linears[:1], *(m for linear in linears[1:] for m in (nn.GELU(), linear)))
