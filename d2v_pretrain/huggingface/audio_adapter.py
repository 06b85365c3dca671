"""Strided convolutions behind the audio encoder, which shorten its output."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from d2v_pretrain.masking.base import within
from d2v_pretrain.models.conv import conv_last, conv_lengths

PADDING = 1  # on both sides, whatever the kernel


class Adapter(nn.Module):
    """Optional projection and LayerNorm to another width, then ``layers`` times a strided
    convolution to twice the width and a gated linear unit.

    Source: transformers ``Data2VecAudioAdapter``. Two deliberate differences: ``layerdrop`` never
    skips one of these layers (it would leave twice as many frames as the lengths that CTC is told),
    and lengths count with the kernel that is there (theirs count with a kernel of 1, which is the
    same at the default of 3).

    Args:
        width: channels of the encoder's output.
        output: channels of the result.
        layers: number of convolutions.
        kernel: kernel size of each convolution.
        stride: stride of each convolution.
        mask_padding: zero the padding before each convolution, so that real frames do not depend on
            it.
    """

    def __init__(
        self, width: int, output: int, layers: int, kernel: int, stride: int, mask_padding: bool
    ) -> None:
        super().__init__()
        self.projection = nn.Linear(width, output) if output != width else None
        self.norm = nn.LayerNorm(output) if output != width else None
        self.convs = nn.ModuleList(
            nn.Conv1d(output, 2 * output, kernel, stride, PADDING) for _ in range(layers)
        )
        self.mask_padding = mask_padding

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Shorten frames (B, T, width) to (B, fewer, output). ``lengths`` (B,) are the real frames
        of each clip; None if all are real."""
        if self.projection is not None and self.norm is not None:
            x = self.norm(self.projection(x))
        for conv in self.convs:
            if self.mask_padding and lengths is not None:
                x = x * within(lengths, x.shape[1])[..., None]
                lengths = _shortened(lengths, conv)
            x = F.glu(conv_last(x, conv))
        return x

    def lengths(self, lengths: Tensor) -> Tensor:
        """The number of real frames of each clip in the result, from that in the encoder's
        output."""
        for conv in self.convs:
            lengths = _shortened(lengths, conv)
        return lengths


def _shortened(lengths: Tensor, conv: nn.Module) -> Tensor:
    assert isinstance(conv, nn.Conv1d)
    return conv_lengths(lengths + 2 * PADDING, conv.kernel_size[0], conv.stride[0])
