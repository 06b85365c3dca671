"""Data2VecAudioForXVector: vectors of speakers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface.audio_heads import AudioHead
from d2v_pretrain.huggingface.config_audio import Data2VecAudioConfig
from d2v_pretrain.huggingface.inputs import class_ids
from d2v_pretrain.huggingface.outputs import XVectorOutput

SCALE, MARGIN = 30.0, 0.4  # of the additive-margin softmax


class _Dilated(nn.Linear):
    """A dilated convolution over time (B, T, C). Its weights are those of a linear layer over
    (kernel * channels), as in transformers."""

    def __init__(self, before: int, after: int, size: int, dilation: int) -> None:
        super().__init__(before * size, after)
        self.size, self.dilation = size, dilation

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight.unflatten(1, (self.size, -1)).transpose(1, 2)
        x = F.conv1d(input.transpose(1, 2), weight, self.bias, dilation=self.dilation)
        return x.transpose(1, 2)


class _TDNN(nn.Module):
    """A dilated convolution over time, then ReLU."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.kernel = _Dilated(*sizes)

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel(x).relu()


class _Margin(nn.Module):
    """Additive-margin softmax (Wang et al., 2018): the cross entropy of ``30 (cos - .4)`` for the
    right class and ``30 cos`` for the others."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, classes))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        cosine = F.normalize(x, dim=1) @ F.normalize(self.weight, dim=0)
        own = F.one_hot(labels, cosine.shape[1]).bool()
        return F.cross_entropy(SCALE * torch.where(own, cosine - MARGIN, cosine), labels)


class Data2VecAudioForXVector(AudioHead):
    """Vectors of speakers: dilated convolutions over time, mean and standard deviation over frames,
    two linear layers.

    ``labels`` (B,) are int64 speakers out of ``config.num_labels``; the loss is the additive-margin
    softmax. ``logits`` and ``embeddings`` are (B, xvector_output_dim); compare embeddings.
    """

    output = XVectorOutput
    takes_adapter = True

    def __init__(self, config: Data2VecAudioConfig) -> None:
        super().__init__(config)
        if config.add_adapter and config.output_hidden_size != config.hidden_size:
            rule = f"must be hidden_size, {config.hidden_size}, which the head is made for"
            raise ConfigError("output_hidden_size", config.output_hidden_size, rule)
        sizes, output = config.tdnn_dim, config.xvector_output_dim
        self.projector = nn.Linear(config.hidden_size, sizes[0])
        inputs = (sizes[0], *sizes[:-1])
        layers = zip(inputs, sizes, config.tdnn_kernel, config.tdnn_dilation, strict=True)
        self.tdnn = nn.ModuleList(_TDNN(*layer) for layer in layers)
        self.feature_extractor = nn.Linear(2 * sizes[-1], output)
        self.classifier = nn.Linear(output, output)
        self.objective = _Margin(output, config.num_labels)
        self.init_weights()

    def read(self, x: Tensor, lengths: Tensor | None, labels: Tensor | None) -> tuple[Any, ...]:
        """The loss, logits and embeddings.

        Raises:
            ConfigError: clips have fewer frames than the convolutions need.
        """
        x = self.projector(x)
        needed = 1 + self._cut(dilated=True)
        if x.shape[1] < needed:
            frames, rule = f"{x.shape[1]} frames", f"must have at least {needed}"
            raise ConfigError("input_values", frames, rule, "pad the batch")
        for layer in self.tdnn:
            x = layer(x)
        embeddings = self.feature_extractor(self._pooled(x, lengths))
        logits = self.classifier(embeddings)
        if labels is None:
            return None, logits, embeddings
        labels = class_ids(labels, self.config.num_labels, len(x), ignored=None).flatten()
        return self.objective(logits, labels), logits, embeddings

    def _cut(self, dilated: bool) -> int:
        """By how many frames the convolutions shorten a clip, with or without dilation."""
        sizes = zip(self.config.tdnn_kernel, self.config.tdnn_dilation, strict=True)
        return sum((kernel - 1) * (dilation if dilated else 1) for kernel, dilation in sizes)

    def _pooled(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Mean and unbiased standard deviation over real frames: (B, T, C) -> (B, 2 C).

        transformers counts the real frames as if nothing were dilated, so that the last frames of a
        shorter row read padding. ``config.padding_invariant`` counts them right. At least one frame
        counts, and the deviation of one frame is 0; transformers gives NaN for such rows.
        """
        if lengths is None:
            counts = [x.shape[1]] * len(x)
        else:
            counts = (lengths - self._cut(self.config.padding_invariant)).clamp(min=1).tolist()
        rows = [row[:count] for row, count in zip(x, counts, strict=True)]
        deviations = [row.std(0, correction=min(1, len(row) - 1)) for row in rows]
        return torch.cat([torch.stack([row.mean(0) for row in rows]), torch.stack(deviations)], 1)
