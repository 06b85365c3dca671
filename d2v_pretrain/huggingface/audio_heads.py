"""Heads of the audio models: speech recognition, classes of clips and of frames."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface.audio import Data2VecAudioModel, Data2VecAudioPreTrainedModel
from d2v_pretrain.huggingface.config_audio import Data2VecAudioConfig
from d2v_pretrain.huggingface.inputs import check_characters, check_fits
from d2v_pretrain.huggingface.losses import classification_loss, token_loss
from d2v_pretrain.huggingface.outputs import (
    CausalLMOutput,
    ModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from d2v_pretrain.masking.base import within


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
