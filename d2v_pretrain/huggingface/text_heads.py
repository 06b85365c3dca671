"""Classifiers over Data2VecTextModel: sequences, choices, tokens, answers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface.config_text import Data2VecTextConfig
from d2v_pretrain.huggingface.losses import classification_loss, token_loss
from d2v_pretrain.huggingface.outputs import (
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from d2v_pretrain.huggingface.text import Data2VecTextModel, Data2VecTextPreTrainedModel


class ClassificationHead(nn.Module):
    """``out_proj(dropout(tanh(dense(dropout(first token)))))``."""

    def __init__(self, config: Data2VecTextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.head_dropout)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, C)."""
        return self.out_proj(self.dropout(self.dense(self.dropout(x[:, 0])).tanh()))


class Data2VecTextForSequenceClassification(Data2VecTextPreTrainedModel):
    """One class, several, or a number for a whole text."""

    def __init__(self, config: Data2VecTextConfig) -> None:
        super().__init__(config)
        self.data2vec_text = Data2VecTextModel(config, add_pooling_layer=False)
        self.classifier = ClassificationHead(config)
        self.init_weights()

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
        head_mask: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """See ``Data2VecTextModel.forward`` and, for ``labels``, ``losses.classification_loss``."""
        out = self.data2vec_text(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            head_mask=head_mask,
            return_dict=True,
        )
        logits = self.classifier(out.last_hidden_state)
        loss = (
            None
            if labels is None
            else classification_loss(logits, labels, self.config.problem_type)
        )
        return SequenceClassifierOutput(loss, logits, out.hidden_states, out.attentions)


class Data2VecTextForMultipleChoice(Data2VecTextPreTrainedModel):
    """The best of several texts, by the pooled output of each."""

    def __init__(self, config: Data2VecTextConfig) -> None:
        super().__init__(config)
        self.data2vec_text = Data2VecTextModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.init_weights()

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
        head_mask: Tensor | None = None,
    ) -> MultipleChoiceModelOutput:
        """See ``Data2VecTextModel.forward``; inputs have a dimension of choices after the batch's,
        ``labels`` (B,) name the right one."""
        given = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        first = inputs_embeds if input_ids is None else input_ids
        out = self.data2vec_text(
            *(None if t is None else t.flatten(0, 1) for t in given),
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            head_mask=head_mask,
            return_dict=True,
        )
        assert first is not None
        logits = self.classifier(self.dropout(out.pooler_output)).view(-1, first.shape[1])
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return MultipleChoiceModelOutput(loss, logits, out.hidden_states, out.attentions)


class Data2VecTextForTokenClassification(Data2VecTextPreTrainedModel):
    """A class for every token."""

    def __init__(self, config: Data2VecTextConfig) -> None:
        super().__init__(config)
        self.data2vec_text = Data2VecTextModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.head_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.init_weights()

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
        head_mask: Tensor | None = None,
    ) -> TokenClassifierOutput:
        """See ``Data2VecTextModel.forward``; ``labels`` (B, T) are classes, -100 to leave out."""
        out = self.data2vec_text(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            head_mask=head_mask,
            return_dict=True,
        )
        logits = self.classifier(self.dropout(out.last_hidden_state))
        loss = None if labels is None else token_loss(logits, labels)
        return TokenClassifierOutput(loss, logits, out.hidden_states, out.attentions)


class Data2VecTextForQuestionAnswering(Data2VecTextPreTrainedModel):
    """First and last token of an answer in the text; ``num_labels`` must stay 2."""

    def __init__(self, config: Data2VecTextConfig) -> None:
        super().__init__(config)
        if config.num_labels != 2:
            raise ConfigError(
                "num_labels",
                config.num_labels,
                "must be 2, first and last token",
                "set num_labels=2",
            )
        self.data2vec_text = Data2VecTextModel(config, add_pooling_layer=False)
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
        head_mask: Tensor | None = None,
    ) -> QuestionAnsweringModelOutput:
        """See ``Data2VecTextModel.forward``; positions (B,) beyond the text are left out of the
        loss."""
        out = self.data2vec_text(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            head_mask=head_mask,
            return_dict=True,
        )
        start, end = self.qa_outputs(out.last_hidden_state).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = (_position_loss(start, start_positions) + _position_loss(end, end_positions)) / 2
        return QuestionAnsweringModelOutput(loss, start, end, out.hidden_states, out.attentions)


def _position_loss(logits: Tensor, positions: Tensor) -> Tensor:
    beyond = logits.shape[1]
    return F.cross_entropy(logits, positions.view(-1).clamp(0, beyond), ignore_index=beyond)
