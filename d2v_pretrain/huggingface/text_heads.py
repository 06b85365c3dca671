"""Heads of the text models: what all share, and classifiers of texts, choices, tokens, answers."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface.config_text import Data2VecTextConfig
from d2v_pretrain.huggingface.inputs import class_ids, shape_of
from d2v_pretrain.huggingface.losses import classification_loss, token_loss
from d2v_pretrain.huggingface.outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    ModelOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from d2v_pretrain.huggingface.text import Data2VecTextModel
from d2v_pretrain.huggingface.text_base import Data2VecTextPreTrainedModel


class TextHead(Data2VecTextPreTrainedModel):
    """A base model under ``data2vec_text``, and a head that gives logits and loss.

    ``forward`` of the heads differ only in their arguments; all of them call ``run``.
    """

    output: ClassVar[type]  # a ModelOutput
    pooled: ClassVar[bool] = False  # the head reads the pooler's output

    def __init__(self, config: Data2VecTextConfig) -> None:
        super().__init__(config)
        self.data2vec_text = Data2VecTextModel(config, add_pooling_layer=self.pooled)

    def run(
        self, labels: Any, *inputs: Tensor | None, return_dict: bool | None, **asked: Any
    ) -> ModelOutput | tuple:
        """Run the base model and the head.

        Args:
            labels: for ``read``.
            inputs: the arguments of the base model, in its order.
            return_dict: see ``PreTrained.returned``.
            asked: further arguments of the base model, by name.

        Returns:
            ``output`` with what ``read`` gives and what the base model returned under its names.
        """
        out = self.data2vec_text(*inputs, return_dict=True, **asked)
        names = {field.name for field in fields(self.output)}
        kept = {name: value for name, value in out.items() if name in names}
        return self.returned(self.output(*self.read(out, labels), **kept), return_dict)

    def read(
        self, out: BaseModelOutputWithPoolingAndCrossAttentions, labels: Any
    ) -> tuple[Any, ...]:
        """The first fields of ``output``: the loss, or None without labels, and the logits.

        Args:
            out: what the base model returned.
            labels: what the head is trained for, see the class.
        """
        raise NotImplementedError


class TextClassifier(TextHead):
    """A head with one argument ``labels``."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        head_mask: Tensor | None = None,
    ) -> ModelOutput | tuple:
        """Run the base model and the head; arguments as in ``Data2VecTextModel.forward``, labels as
        the class says."""
        return self.run(
            labels,
            *(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds),
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
            head_mask=head_mask,
        )


class ClassificationHead(nn.Module):
    """``out_proj(dropout(tanh(dense(dropout(x)))))`` of the first token x."""

    def __init__(self, config: Data2VecTextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.head_dropout)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (texts, tokens, channels) -> logits (texts, classes)."""
        return self.out_proj(self.dropout(self.dense(self.dropout(x[:, 0])).tanh()))


class Data2VecTextForSequenceClassification(TextClassifier):
    """A class, several classes or a number for a whole text.

    ``logits`` are (texts, classes); for ``labels`` see ``losses.classification_loss``.
    """

    output = SequenceClassifierOutput

    def __init__(self, config: Data2VecTextConfig) -> None:
        super().__init__(config)
        self.classifier = ClassificationHead(config)
        self.init_weights()

    def read(
        self, out: BaseModelOutputWithPoolingAndCrossAttentions, labels: Any
    ) -> tuple[Any, ...]:
        logits = self.classifier(out.last_hidden_state)
        return classification_loss(logits, labels, self.config.problem_type), logits


class Data2VecTextForMultipleChoice(TextHead):
    """The best of several texts, by the pooled output of each.

    The inputs have a second axis for the choices: (B, choices, T) for B questions and T tokens.
    ``labels`` (B,) are the right choices; ``logits`` are (B, choices).
    """

    output = MultipleChoiceModelOutput
    pooled = True

    def __init__(self, config: Data2VecTextConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.init_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        head_mask: Tensor | None = None,
    ) -> ModelOutput | tuple:
        """Run the base model and the head on every choice; arguments as in
        ``Data2VecTextModel.forward``, in another order, as in transformers.

        Raises:
            ConfigError: inputs without an axis of choices.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        for x in inputs:
            if x is not None and x.ndim < 3:
                rule = "must be questions by choices by tokens"
                raise ConfigError("inputs", shape_of(x), rule, "write input_ids[None] for one")
        choices = next((x.shape[1] for x in inputs if x is not None), 0)
        return self.run(
            (labels, choices),
            *(None if x is None else x.flatten(0, 1) for x in inputs),
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
            head_mask=head_mask,
        )

    def read(
        self, out: BaseModelOutputWithPoolingAndCrossAttentions, labels: Any
    ) -> tuple[Any, ...]:
        right, choices = labels
        logits = self.classifier(self.dropout(out.pooler_output)).view(-1, choices)
        return token_loss(logits, right), logits


class Data2VecTextForTokenClassification(TextClassifier):
    """A class for every token: ``logits`` (texts, tokens, classes), ``labels`` (texts, tokens),
    -100 to leave a token out."""

    output = TokenClassifierOutput

    def __init__(self, config: Data2VecTextConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.head_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.init_weights()

    def read(
        self, out: BaseModelOutputWithPoolingAndCrossAttentions, labels: Any
    ) -> tuple[Any, ...]:
        logits = self.classifier(self.dropout(out.last_hidden_state))
        return token_loss(logits, labels), logits


class Data2VecTextForQuestionAnswering(TextHead):
    """The first and the last token of an answer in a text: ``start_logits`` and ``end_logits``
    (texts, tokens). ``num_labels`` must be 2."""

    output = QuestionAnsweringModelOutput

    def __init__(self, config: Data2VecTextConfig) -> None:
        super().__init__(config)
        if config.num_labels != 2:
            rule = "must be 2, first and last token"
            raise ConfigError("num_labels", config.num_labels, rule, "set num_labels=2")
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.init_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        head_mask: Tensor | None = None,
    ) -> ModelOutput | tuple:
        """Run the base model and the head; arguments as in ``Data2VecTextModel.forward``.

        Args:
            start_positions: first token of the answer in each text; positions beyond the text are
                left out of the loss.
            end_positions: last token of the answer, likewise.
        """
        return self.run(
            (start_positions, end_positions),
            *(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds),
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
            head_mask=head_mask,
        )

    def read(
        self, out: BaseModelOutputWithPoolingAndCrossAttentions, labels: Any
    ) -> tuple[Any, ...]:
        start, end = self.qa_outputs(out.last_hidden_state).unbind(-1)
        first, last = labels
        if first is None or last is None:
            return None, start, end
        return (_position_loss(start, first) + _position_loss(end, last)) / 2, start, end


def _position_loss(logits: Tensor, positions: Tensor) -> Tensor:
    beyond = logits.shape[1]
    positions = class_ids(positions, beyond, len(logits), key="positions", unlimited=True)
    return F.cross_entropy(logits, positions.view(-1).clamp(0, beyond), ignore_index=beyond)
