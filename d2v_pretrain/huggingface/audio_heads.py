"""Heads of the audio models: speech recognition, classes of clips and of frames, speakers."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface.audio import Data2VecAudioModel, Data2VecAudioPreTrainedModel
from d2v_pretrain.huggingface.config_audio import Data2VecAudioConfig
from d2v_pretrain.huggingface.inputs import check_characters, check_fits, class_ids
from d2v_pretrain.huggingface.losses import classification_loss, token_loss
from d2v_pretrain.huggingface.outputs import (
    CausalLMOutput,
    ModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
    XVectorOutput,
)
from d2v_pretrain.masking.base import within

SCALE, MARGIN = 30.0, 0.4  # of the additive-margin softmax


class AudioHead(Data2VecAudioPreTrainedModel):
    """A base model and a head, which gives logits and loss.

    Classifiers read the last hidden state, or a learned average of all of them if
    ``config.use_weighted_layer_sum``.
    """

    output: ClassVar[type]  # a ModelOutput
    takes_adapter: ClassVar[bool] = False
    averages_states: ClassVar[bool] = True

    def __init__(self, config: Data2VecAudioConfig) -> None:
        super().__init__(config)
        if config.add_adapter and not self.takes_adapter:
            rule = f"does not go with {type(self).__name__}"
            raise ConfigError("add_adapter", True, rule, "set add_adapter=False")
        self.data2vec_audio = Data2VecAudioModel(config)
        states = config.num_hidden_layers + 1
        self.register_parameter("layer_weights", None)
        if config.use_weighted_layer_sum and self.averages_states:
            self.layer_weights = nn.Parameter(torch.full((states,), 1 / states))

    def freeze_base_model(self) -> None:
        """Train only the head."""
        self.data2vec_audio.requires_grad_(False)

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput | tuple:
        """Run the base model and the head.

        Args:
            input_values: (B, S); this and the others as in ``Data2VecAudioModel.forward``.
            attention_mask: (B, S).
            labels: see the class; without them there is no loss.
            output_attentions: return the attention probabilities.
            output_hidden_states: return the hidden states.
            return_dict: False for a tuple; ``config.return_dict`` by default.

        Returns:
            ``loss`` () and ``logits``, see the class; ``hidden_states`` and ``attentions`` if they
            were asked for.
        """
        base, weights = self.data2vec_audio, self.layer_weights
        states = self.returns_states(output_hidden_states)
        out = base(
            input_values,
            attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=states or weights is not None,
            return_dict=True,
        )
        x, lengths = out.last_hidden_state, None
        if weights is not None:
            x = (torch.stack(out.hidden_states, 1) * weights.softmax(-1).view(-1, 1, 1)).sum(1)
        if attention_mask is not None:
            lengths = base.frames(input_values, attention_mask, adapted=weights is None)
        read = self.read(x, lengths, labels)
        output = self.output(*read, out.hidden_states if states else None, out.attentions)
        return self.returned(output, return_dict)

    def read(self, x: Tensor, lengths: Tensor | None, labels: Tensor | None) -> tuple[Any, ...]:
        """The first fields of ``output``: the loss, or None without labels, and the logits.

        Args:
            x: (B, T, D) hidden states.
            lengths: (B,) real frames of each row; None if all are real.
            labels: see the class.
        """
        raise NotImplementedError


class Data2VecAudioForCTC(AudioHead):
    """Speech recognition by connectionist temporal classification: a linear layer over frames.

    ``config.vocab_size`` is the number of characters, the blank (``pad_token_id``) included.
    ``labels`` (B, U) int64 are characters; negative ones and the blank are padding. ``loss`` is
    float32, reduced by ``config.ctc_loss_reduction``; ``logits`` are (B, T, vocab_size).
    """

    output = CausalLMOutput
    takes_adapter = True
    averages_states = False

    def __init__(self, config: Data2VecAudioConfig) -> None:
        super().__init__(config)
        width = (config.add_adapter and config.output_hidden_size) or config.hidden_size
        self.lm_head = nn.Linear(width, config.vocab_size)
        self.init_weights()

    def read(self, x: Tensor, lengths: Tensor | None, labels: Tensor | None) -> tuple[Any, ...]:
        """Logits of characters and the CTC loss.

        Raises:
            ConfigError: a label is not in the vocabulary, there is no blank, or there is not one
                row of labels for each clip.
        """
        c = self.config
        logits = self.lm_head(F.dropout(x, c.final_dropout, self.training))
        if labels is None:
            return None, logits
        blank = check_characters(labels, len(x), c.vocab_size, c.pad_token_id)
        if lengths is None:
            lengths = torch.full((len(x),), x.shape[1], device=x.device)
        real = (labels >= 0) & (labels != blank)
        # Not by cuDNN, as in transformers: it has other limits and gives other numbers.
        with torch.backends.cudnn.flags(enabled=False):
            loss = F.ctc_loss(
                logits.log_softmax(-1, dtype=torch.float32).transpose(0, 1),
                labels[real],
                lengths,
                real.sum(-1),
                blank,
                c.ctc_loss_reduction,
                zero_infinity=c.ctc_zero_infinity,
            )
        return loss, logits


class Data2VecAudioForSequenceClassification(AudioHead):
    """Classes of whole clips: a linear layer, the mean over real frames, a linear layer.

    ``labels`` (B,) are int64 classes (cross entropy), or numbers if ``config.num_labels`` is 1
    (mean squared error). ``logits`` are (B, num_labels).
    """

    output = SequenceClassifierOutput

    def __init__(self, config: Data2VecAudioConfig) -> None:
        super().__init__(config)
        self.projector = nn.Linear(config.hidden_size, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, config.num_labels)
        self.init_weights()

    def read(self, x: Tensor, lengths: Tensor | None, labels: Tensor | None) -> tuple[Any, ...]:
        """Logits of classes, and the loss."""
        x = self.projector(x)
        if lengths is None:
            pooled = x.mean(1)
        else:
            padding = ~within(lengths, x.shape[1])[..., None]
            pooled = x.masked_fill(padding, 0.0).sum(1) / lengths[:, None]
        logits = self.classifier(pooled)
        if labels is None:
            return None, logits
        if self.config.num_labels == 1:
            return classification_loss(logits, labels, "regression"), logits
        return token_loss(logits, labels), logits


class Data2VecAudioForAudioFrameClassification(AudioHead):
    """Classes of frames, as in telling who speaks when: a linear layer.

    ``labels`` (B, T, num_labels) are 1 at the class of each frame and 0 elsewhere. The loss is the
    cross entropy; padding counts, as in transformers. ``logits`` are (B, T, num_labels).
    """

    output = TokenClassifierOutput

    def __init__(self, config: Data2VecAudioConfig) -> None:
        super().__init__(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.init_weights()

    def read(self, x: Tensor, lengths: Tensor | None, labels: Tensor | None) -> tuple[Any, ...]:
        """Logits of classes, and the loss."""
        logits = self.classifier(x)
        if labels is None:
            return None, logits
        check_fits("labels", labels, logits.shape, ", clips by frames by classes")
        classes = labels.reshape(-1, self.config.num_labels).argmax(1)
        return F.cross_entropy(logits.flatten(0, 1), classes), logits


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
