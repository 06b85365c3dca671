"""Heads that classify audio: of a whole clip, of each frame, and by speaker (x-vectors)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface.audio import Data2VecAudioModel, Data2VecAudioPreTrainedModel
from d2v_pretrain.huggingface.config import Data2VecAudioConfig
from d2v_pretrain.huggingface.outputs import (
    SequenceClassifierOutput,
    TokenClassifierOutput,
    Wav2Vec2BaseModelOutput,
    XVectorOutput,
)
from d2v_pretrain.masking.base import within

SCALE, MARGIN = 30.0, 0.4  # of the additive-margin softmax


class _Classifier(Data2VecAudioPreTrainedModel):
    """A head that reads the last state, or with ``use_weighted_layer_sum`` a learned average of all
    states."""

    def __init__(self, config: Data2VecAudioConfig, adapter: bool = False) -> None:
        super().__init__(config)
        if config.add_adapter and not adapter:
            raise ConfigError(
                "add_adapter",
                True,
                f"does not go with {type(self).__name__}",
                "set add_adapter=False",
            )
        self.data2vec_audio = Data2VecAudioModel(config)
        states = config.num_hidden_layers + 1
        self.register_parameter("layer_weights", None)
        if config.use_weighted_layer_sum:
            self.layer_weights = nn.Parameter(torch.full((states,), 1 / states))

    def freeze_base_model(self) -> None:
        """Train the head alone."""
        self.data2vec_audio.requires_grad_(False)

    def _encode(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None,
        attentions: bool | None,
        states: bool | None,
    ) -> tuple[Tensor, Tensor | None, Wav2Vec2BaseModelOutput]:
        """(B, T, D) that the head reads, its real frames (B,) or None if all are, and what the base
        model returned, its states only if they were asked for."""
        base, weights = self.data2vec_audio, self.layer_weights
        kept = states if weights is None else True
        outputs = base(
            input_values,
            attention_mask,
            output_attentions=attentions,
            output_hidden_states=kept,
            return_dict=True,
        )
        adapted = weights is None
        lengths = (
            None if attention_mask is None else base.frames(input_values, attention_mask, adapted)
        )
        if weights is None:
            return outputs.last_hidden_state, lengths, outputs
        x = (torch.stack(outputs.hidden_states, 1) * weights.softmax(-1).view(-1, 1, 1)).sum(1)
        if not (self.config.output_hidden_states if states is None else states):
            outputs.hidden_states = None
        return x, lengths, outputs


class Data2VecAudioForSequenceClassification(_Classifier):
    """A class for the whole clip: linear, mean over its real frames, linear.

    Args:
        config: ``num_labels`` classes (1: regression), ``classifier_proj_size``.
    """

    def __init__(self, config: Data2VecAudioConfig) -> None:
        super().__init__(config)
        self.projector = nn.Linear(config.hidden_size, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, config.num_labels)
        self.init_weights()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Logits of classes, and the loss of ``labels``.

        Args:
            input_values: see ``Data2VecAudioModel``; so are the other arguments.
            attention_mask: see there.
            labels: (B,) int64 classes (cross entropy), or float values if ``num_labels`` is 1 (mean
                squared error).
            output_attentions: see there.
            output_hidden_states: see there.

        Returns:
            ``loss`` (); ``logits`` (B, num_labels).
        """
        x, lengths, outputs = self._encode(
            input_values, attention_mask, output_attentions, output_hidden_states
        )
        x = self.projector(x)
        if lengths is None:
            pooled = x.mean(1)
        else:
            pooled = (
                x.masked_fill(~within(lengths, x.shape[1])[..., None], 0.0).sum(1)
                / lengths[:, None]
            )
        logits = self.classifier(pooled)
        loss = None if labels is None else self._loss(logits, labels.flatten())
        return SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.config.num_labels == 1:
            return F.mse_loss(logits.flatten(), labels.to(logits.dtype))
        return F.cross_entropy(logits, labels)


class Data2VecAudioForAudioFrameClassification(_Classifier):
    """A class for each frame, as in telling speakers apart over time: one linear layer.

    Args:
        config: ``num_labels`` classes.
    """

    def __init__(self, config: Data2VecAudioConfig) -> None:
        super().__init__(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.init_weights()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> TokenClassifierOutput:
        """Logits of classes, and the cross entropy of ``labels``, padding included (as in
        transformers).

        Args:
            input_values: see ``Data2VecAudioModel``; so are the other arguments.
            attention_mask: see there.
            labels: (B, T, num_labels), 1 at the class of each frame and 0 elsewhere.
            output_attentions: see there.
            output_hidden_states: see there.

        Returns:
            ``loss`` (); ``logits`` (B, T, num_labels).
        """
        x, _, outputs = self._encode(
            input_values, attention_mask, output_attentions, output_hidden_states
        )
        logits = self.classifier(x)
        loss = None
        if labels is not None:
            classes = labels.reshape(-1, self.config.num_labels).argmax(1)
            loss = F.cross_entropy(logits.flatten(0, 1), classes)
        return TokenClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class _TDNN(nn.Module):
    """A dilated convolution over time, kept as a linear layer over (kernel * channels), and
    ReLU."""

    def __init__(self, before: int, after: int, size: int, dilation: int) -> None:
        super().__init__()
        self.kernel = nn.Linear(before * size, after)
        self.size, self.dilation = size, dilation

    def forward(self, x: Tensor) -> Tensor:
        weight = self.kernel.weight.unflatten(1, (self.size, -1)).transpose(1, 2)
        return (
            F.conv1d(x.transpose(1, 2), weight, self.kernel.bias, dilation=self.dilation)
            .transpose(1, 2)
            .relu()
        )


class _Margin(nn.Module):
    """Cross entropy of ``30 (cos - .4 [own class])``: additive-margin softmax (Wang et al.,
    2018)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, classes))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        cosine = F.normalize(x, dim=1) @ F.normalize(self.weight, dim=0)
        own = F.one_hot(labels, cosine.shape[1]).bool()
        return F.cross_entropy(SCALE * torch.where(own, cosine - MARGIN, cosine), labels)


class Data2VecAudioForXVector(_Classifier):
    """A vector for the clip's speaker: dilated convolutions over time, mean and deviation over
    frames, two linear layers.

    Args:
        config: ``tdnn_*``, ``xvector_output_dim``; ``num_labels`` speakers to train with.
    """

    def __init__(self, config: Data2VecAudioConfig) -> None:
        super().__init__(config, adapter=True)
        if config.add_adapter and config.output_hidden_size != config.hidden_size:
            rule = f"must be hidden_size, {config.hidden_size}, which the head is made for"
            raise ConfigError("output_hidden_size", config.output_hidden_size, rule)
        sizes, output = config.tdnn_dim, config.xvector_output_dim
        self.projector = nn.Linear(config.hidden_size, sizes[0])
        layers = zip(
            (sizes[0], *sizes), sizes, config.tdnn_kernel, config.tdnn_dilation, strict=False
        )
        self.tdnn = nn.ModuleList(_TDNN(*layer) for layer in layers)
        self.feature_extractor = nn.Linear(2 * sizes[-1], output)
        self.classifier = nn.Linear(output, output)
        self.objective = _Margin(output, config.num_labels)
        self.init_weights()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> XVectorOutput:
        """Embeddings, logits, and the additive-margin loss of ``labels``.

        Args:
            input_values: see ``Data2VecAudioModel``; so are the other arguments.
            attention_mask: see there.
            labels: (B,) int64 speakers.
            output_attentions: see there.
            output_hidden_states: see there.

        Returns:
            ``loss`` (); ``logits`` and ``embeddings`` (B, xvector_output_dim), the vectors to
            compare.

        Raises:
            ConfigError: clips with fewer frames than the convolutions see.
        """
        x, lengths, outputs = self._encode(
            input_values, attention_mask, output_attentions, output_hidden_states
        )
        x = self.projector(x)
        seen = 1 + self._cut(dilated=True)
        if x.shape[1] < seen:
            raise ConfigError(
                "input_values",
                f"{x.shape[1]} frames",
                f"must have at least {seen}",
                "pad the batch",
            )
        for layer in self.tdnn:
            x = layer(x)
        embeddings = self.feature_extractor(self._pooled(x, lengths))
        logits = self.classifier(embeddings)
        loss = None if labels is None else self.objective(logits, labels.flatten())
        return XVectorOutput(loss, logits, embeddings, outputs.hidden_states, outputs.attentions)

    def _cut(self, dilated: bool) -> int:
        """Frames that the convolutions take away, or would if nothing were dilated."""
        sizes = zip(self.config.tdnn_kernel, self.config.tdnn_dilation, strict=True)
        return sum((kernel - 1) * (dilation if dilated else 1) for kernel, dilation in sizes)

    def _pooled(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, T, C) -> (B, 2 C), mean and unbiased deviation over real frames.

        transformers counts real frames as if nothing were dilated, so that a shorter row's last
        frames read padding; ``padding_invariant`` counts them right. At least one frame counts; the
        deviation of one frame is 0 (theirs: an empty or wrapped slice, NaN)."""
        if lengths is None:
            counts = [x.shape[1]] * len(x)
        else:
            counts = (lengths - self._cut(self.config.padding_invariant)).clamp(min=1).tolist()
        rows = [row[:count] for row, count in zip(x, counts, strict=True)]
        deviations = [row.std(0, correction=min(1, len(row) - 1)) for row in rows]
        return torch.cat([torch.stack([row.mean(0) for row in rows]), torch.stack(deviations)], 1)
