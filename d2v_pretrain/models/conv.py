"""Convolutions over grids whose last axis holds the channels: (batch, time, channels) or (batch,
height, width, channels), in the input and in the output."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupedConv1d(nn.Conv1d):
    """A ``Conv1d`` that computes groups as a ``conv2d`` on an image of one row. That is faster on a
    CPU (204 against 311 ms for 32 x 250 x 768, kernel 19, 16 groups); without groups it would be
    slower."""

    def forward(self, input: Tensor) -> Tensor:
        """(batch, channels, time) -> the same."""
        if self.groups == 1:
            return super().forward(input)
        weight = self.weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        stride, padding = (1, self.stride[0]), (0, int(self.padding[0]))
        image = input.unsqueeze(2)
        return F.conv2d(image, weight, self.bias, stride, padding, 1, self.groups).squeeze(2)


def conv_last(x: Tensor, conv: nn.Module) -> Tensor:
    """Apply a ``Conv1d`` to (batch, time, channels) or a ``Conv2d`` to (batch, height, width,
    channels). The layout is channels-last so that LayerNorm and GELU run over contiguous
    channels."""
    return conv(x.movedim(-1, 1)).movedim(1, -1)


def conv_lengths(lengths: Tensor, kernel: int, stride: int) -> Tensor:
    """Output length of an unpadded convolution: ``floor((n - kernel) / stride) + 1``."""
    return torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
