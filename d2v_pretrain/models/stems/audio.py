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


class TimeNorm(nn.Module):
    """Each channel of each row is normalised over time, then scaled and shifted: GroupNorm with one
    group for each channel.

    Source: fairseq ``Fp32GroupNorm``, which counts padding as time.

    Args:
        channels: C, number of channels.
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C). ``valid`` is (B, T) bool, True at the frames whose mean and
        variance are taken; None for all."""
        if valid is None:
            channels = x.shape[-1]
            y = F.group_norm(x.transpose(1, 2), channels, self.weight, self.bias, self.eps)
            return y.transpose(1, 2)
        padding, count = ~valid[..., None], valid.sum(1)[:, None, None]
        whole = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        mean = whole.masked_fill(padding, 0).sum(1, keepdim=True) / count
        distance = whole - mean
        variance = distance.square().masked_fill(padding, 0).sum(1, keepdim=True) / count
        y = distance * (variance + self.eps).rsqrt() * self.weight + self.bias
        return y.to(x.dtype)


class AudioStem(Stem):
    """Each layer: conv (no padding) -> norm -> GELU; then LayerNorm and a linear projection to
    ``width``.

    Source: fairseq ``ConvFeatureExtractionModel``. Eps of the layers' norms is 1e-5.

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
        norm: ``layer``, LayerNorm over channels in each layer (data2vec; fairseq's
            ``extractor_mode=layer_norm``), or ``group``, ``TimeNorm`` in the first layer and none
            in the others (wav2vec 2.0 Base; ``extractor_mode=default``).
        mask_padding: leave the padding out of the mean and variance of ``TimeNorm``, so that a row
            gives the same in any batch. The reference counts it; False does the same.
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
        norm: str = "layer",
        mask_padding: bool = True,
    ) -> None:
        super().__init__()
        assert norm in ("layer", "group"), f"unknown norm {norm!r}: layer or group"
        self.activation, self.norm_over, self.mask_padding = activation, norm, mask_padding
        self.layers = [tuple(layer) for layer in layers]
        channels = [1, *(c for c, _, _ in self.layers)]
        self.convs = nn.ModuleList(
            nn.Conv1d(before, c, k, s, bias=conv_bias)
            for before, (c, k, s) in zip(channels, self.layers, strict=False)
        )
        if norm == "layer":
            self.norms = nn.ModuleList(nn.LayerNorm(c) for c in channels[1:])
        else:
            self.norms = nn.ModuleList([TimeNorm(channels[1])])
        self.norm = nn.LayerNorm(channels[-1], norm_eps)
        self.projection = nn.Linear(channels[-1], width)
        if masked:
            self.mask_vector = nn.Parameter(torch.rand(width))
        _initialise(self.convs, init)

    def forward(self, batch: Batch) -> Tokens:
        """Waveforms (B, S) of B clips of S samples -> tokens (B, T, D), one for each frame."""
        x = self.features(batch.inputs, batch.lengths if self.mask_padding else None)
        lengths = self.token_lengths(batch.lengths)
        return Tokens(
            self.projection(x), x.shape[1:2], valid_positions(lengths, x.shape[1], x.device)
        )

    def features(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Waveforms (clips, samples) -> normalised features (clips, frames, channels) before the
        projection. ``lengths`` (clips,) is the number of real samples of each, None if all are."""
        x = F.pad(waveform, (0, max(0, self.receptive_field - waveform.shape[1]))).unsqueeze(-1)
        if self.norm_over == "group":
            return self._over_time(x, lengths)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.activation(norm(conv_last(x, conv)))
        return self.norm(x)

    def _over_time(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        first, *rest = self.convs
        x = conv_last(x, first)
        if lengths is not None:
            _, kernel, stride = self.layers[0]
            lengths = conv_lengths(lengths.clamp(min=self.receptive_field), kernel, stride)
        x = self.activation(self.norms[0](x, valid_positions(lengths, x.shape[1], x.device)))
        for conv in rest:
            x = self.activation(conv_last(x, conv))
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
