"""Language models: Data2VecTextForMaskedLM for masked tokens, Data2VecTextForCausalLM for the next
token."""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_pretrain.huggingface.config_text import Data2VecTextConfig
from d2v_pretrain.huggingface.inputs import class_ids
from d2v_pretrain.huggingface.losses import token_loss
from d2v_pretrain.huggingface.outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
    ModelOutput,
    Past,
)
from d2v_pretrain.huggingface.text_heads import TextHead

logger = logging.getLogger(__name__)


class LMHead(nn.Module):
    """Logits over the vocabulary: ``decoder(LayerNorm(gelu(dense(x))))``.

    The decoder is the token table with ``bias``. With ``config.tie_word_embeddings=False`` it has a
    matrix and a bias of its own, and ``bias`` is without effect, as in transformers 5.
    """

    def __init__(self, config: Data2VecTextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.decoder = (
            None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size)
        )

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """Tokens (texts, tokens, D) and the token table (vocabulary, D) -> logits (texts, tokens,
        vocabulary)."""
        x = self.layer_norm(F.gelu(self.dense(x)))
        return F.linear(x, table, self.bias) if self.decoder is None else self.decoder(x)


class LanguageModel(TextHead):
    """A base model without pooler, and a head over the vocabulary."""

    def __init__(self, config: Data2VecTextConfig) -> None:
        super().__init__(config)
        self.lm_head = LMHead(config)
        self.init_weights()

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``PreTrained``. Old files hold a tied decoder although it is the token table, and its
        bias under one of two names."""
        state = super().adapt(state)
        bias, weight = "lm_head.decoder.bias", "lm_head.decoder.weight"
        for name, other in ((bias, "lm_head.bias"), ("lm_head.bias", bias)):
            if name not in state and other in state:
                state[name] = state[other]
        if self.config.tie_word_embeddings:
            state = {key: t for key, t in state.items() if key not in (bias, weight)}
        return state

    def read(
        self, out: BaseModelOutputWithPoolingAndCrossAttentions, labels: Any
    ) -> tuple[Any, ...]:
        """The loss, or None without labels, and the logits (texts, tokens, vocabulary)."""
        logits = self.lm_head(out.last_hidden_state, self.get_input_embeddings().weight)
        return self.loss(logits, labels), logits

    def loss(self, logits: Tensor, labels: Tensor | None) -> Tensor | None:
        """The cross entropy of the labels that are not -100."""
        return token_loss(logits, labels)


class Data2VecTextForMaskedLM(LanguageModel):
    """Predicts the tokens at ``<mask>``: ``labels`` (texts, tokens) are their ids, -100
    elsewhere."""

    output = MaskedLMOutput

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        head_mask: Tensor | None = None,
    ) -> ModelOutput:
        """Run the base model and the head; arguments as in ``Data2VecTextModel.forward``, labels as
        the class says."""
        return self.run(
            labels,
            *(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds),
            *(encoder_hidden_states, encoder_attention_mask),
            use_cache=False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            head_mask=head_mask,
        )


class Data2VecTextForCausalLM(LanguageModel):
    """Predicts the next token: ``labels`` (texts, tokens) are the ids of the input, -100 to
    leave a token out.

    ``config.is_decoder`` should be True. Otherwise every token sees the ones after it.
    """

    output = CausalLMOutputWithCrossAttentions

    def __init__(self, config: Data2VecTextConfig) -> None:
        super().__init__(config)
        if not config.is_decoder:
            logger.warning(
                "Data2VecTextForCausalLM sees what it must predict: set config.is_decoder=True."
            )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Past | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        head_mask: Tensor | None = None,
        cache: Past | None = None,
    ) -> ModelOutput:
        """Run the base model and the head; arguments as in ``Data2VecTextModel.forward``, labels as
        the class says. With labels no cache is returned."""
        return self.run(
            labels,
            *(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds),
            *(encoder_hidden_states, encoder_attention_mask),
            past_key_values=past_key_values,
            use_cache=use_cache if labels is None else False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            head_mask=head_mask,
            cache=cache,
        )

    def loss(self, logits: Tensor, labels: Tensor | None) -> Tensor | None:
        """The cross entropy of each next token."""
        if labels is None:
            return None
        ids = class_ids(labels, logits.shape[-1], *logits.shape[:-1], unlimited=True)
        return token_loss(logits[:, :-1], ids.view(logits.shape[:-1])[:, 1:])
