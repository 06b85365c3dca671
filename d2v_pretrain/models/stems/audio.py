"""Waveform -> frames: strided convolutions with LayerNorm and GELU, then a projection."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_pretrain.models.conv import conv_last, conv_lengths
from d2v_pretrain.models.stems.base import Stem, valid_positions
from d2v_pretrain.types import Batch, Tokens

# Channels, kernel and stride of wav2vec 2.0: one frame per 320 samples (20 ms), each of
# which is computed from 400 samples.
WAV2VEC2 = ((512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2)


class AudioStem(Stem):
    """Each layer: conv (no padding) -> LayerNorm over channels -> GELU; then LayerNorm and a linear
    projection to ``width``.

    Source: fairseq ``ConvFeatureExtractionModel`` with ``mode=layer_norm``. Eps of the layers'
    LayerNorms is 1e-5.

    Args:
        width: D, channels of a token.
        layers: (channels, kernel, stride) of each convolution.
        conv_bias: convolutions have a bias.
        masked: learn a mask vector (data2vec 1).
        init: ``kaiming`` as published, or ``smooth``: layers after the first start as averages over
            time of their rectified inputs. A usual random stem passes the phase of the waveform
            through, so that targets are at first noise. A small model does not learn to predict it
            and collapses; with ``smooth`` it learns from step 100 on.
        norm_eps: of the LayerNorm before the projection.
        activation: after each layer.
    """

    reads = "waveform"

    def __init__(
        self,
        width: int,
        layers: Sequence[Sequence[int]] = WAV2VEC2,
        conv_bias: bool = False,
        masked: bool = False,
        init: str = "kaiming",
        norm_eps: float = 1e-5,
        activation: Callable[[Tensor], Tensor] = F.gelu,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.layers = [tuple(layer) for layer in layers]
        channels = [1, *(c for c, _, _ in self.layers)]
        self.convs = nn.ModuleList(
            nn.Conv1d(before, c, k, s, bias=conv_bias)
            for before, (c, k, s) in zip(channels, self.layers, strict=False)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in channels[1:])
        self.norm = nn.LayerNorm(channels[-1], norm_eps)
        self.projection = nn.Linear(channels[-1], width)
        if masked:
            self.mask_vector = nn.Parameter(torch.rand(width))
        _initialise(self.convs, init)

    def forward(self, batch: Batch) -> Tokens:
        """Waveforms (B, S) of B clips of S samples -> tokens (B, T, D), one for each frame."""
        x = self.features(batch.inputs)
        lengths = self.token_lengths(batch.lengths)
        return Tokens(
            self.projection(x), x.shape[1:2], valid_positions(lengths, x.shape[1], x.device)
        )

    def features(self, waveform: Tensor) -> Tensor:
        """Waveforms (clips, samples) -> normalised features (clips, frames, channels) before the
        projection."""
        x = F.pad(waveform, (0, max(0, self.receptive_field - waveform.shape[1]))).unsqueeze(-1)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.activation(norm(conv_last(x, conv)))
        return self.norm(x)

    @property
    def receptive_field(self) -> int:
        """Number of samples that one frame sees: 400 for the published stem. Shorter inputs are
        padded with zeros.
        """
        field = 1
        for _, kernel, stride in reversed(self.layers):
            field = (field - 1) * stride + kernel
        return field

    def grid(self, shape: torch.Size) -> tuple[int, ...]:
        """The number of frames, as a tuple, for waveforms of shape (clips, samples): the published
        stem makes 49 frames of 16,000 samples."""
        lengths = self.token_lengths(torch.tensor([shape[1]]))
        assert lengths is not None
        return (int(lengths[0]),)

    def token_lengths(self, lengths: Tensor | None) -> Tensor | None:
        """Number of frames; at least one, because short inputs are padded."""
        if lengths is None:
            return None
        for _, kernel, stride in self.layers:
            lengths = conv_lengths(lengths, kernel, stride)
        return lengths.clamp(min=1)


def _initialise(convs: nn.ModuleList, scheme: str) -> None:
    assert scheme in ("kaiming", "smooth"), f"unknown stem init {scheme!r}: kaiming or smooth"
    for depth, conv in enumerate(convs):
        assert isinstance(conv, nn.Conv1d)
        nn.init.kaiming_normal_(conv.weight)
        if scheme == "smooth" and depth > 0:
            c_out, c_in, taps = conv.weight.shape
            mixing = 1.5 * torch.eye(c_out, c_in) + torch.randn(c_out, c_in) / c_in**0.5
            with torch.no_grad():
                conv.weight.copy_((3 / taps * mixing)[..., None].expand(-1, -1, taps))
