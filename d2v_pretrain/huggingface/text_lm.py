"""Language models over Data2VecTextModel: of masked tokens, of next tokens."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_pretrain.huggingface.config_text import Data2VecTextConfig
from d2v_pretrain.huggingface.losses import token_loss
from d2v_pretrain.huggingface.outputs import CausalLMOutputWithCrossAttentions, MaskedLMOutput, Past
from d2v_pretrain.huggingface.text import Data2VecTextModel, Data2VecTextPreTrainedModel

logger = logging.getLogger(__name__)


class LMHead(nn.Module):
    """``decoder(LayerNorm(gelu(dense(x))))``; the decoder is the token table and ``bias`` unless
    untied.

    Untied, it has a matrix and a bias of its own, and ``bias`` is dead, as in transformers 5.
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
        """(B, T, D) and the token table (V, D) -> (B, T, V)."""
        x = self.layer_norm(F.gelu(self.dense(x)))
        return F.linear(x, table, self.bias) if self.decoder is None else self.decoder(x)


class _LanguageModel(Data2VecTextPreTrainedModel):
    """The encoder without pooler, and a head over the vocabulary."""

    def __init__(self, config: Data2VecTextConfig) -> None:
        super().__init__(config)
        self.data2vec_text = Data2VecTextModel(config, add_pooling_layer=False)
        self.lm_head = LMHead(config)
        self.init_weights()

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Old files hold the decoder beside the table that it is, and one name or the other of the
        shared bias."""
        state, (bias, weight) = (
            super().adapt(state),
            ("lm_head.decoder.bias", "lm_head.decoder.weight"),
        )
        for name, other in ((bias, "lm_head.bias"), ("lm_head.bias", bias)):
            if name not in state and other in state:
                state[name] = state[other]
        tied = self.config.tie_word_embeddings
        return {
            key: tensor for key, tensor in state.items() if not (tied and key in (bias, weight))
        }

    def _logits(self, x: Tensor) -> Tensor:
        return self.lm_head(x, self.get_input_embeddings().weight)


class Data2VecTextForMaskedLM(_LanguageModel):
    """Predicts the ids at ``<mask>``."""

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
    ) -> MaskedLMOutput:
        """See ``Data2VecTextModel.forward``; ``labels`` (B, T) are ids, -100 where there is nothing
        to predict."""
        out = self.data2vec_text(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            encoder_hidden_states,
            encoder_attention_mask,
            use_cache=False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            head_mask=head_mask,
            return_dict=True,
        )
        logits = self._logits(out.last_hidden_state)
        loss = None if labels is None else token_loss(logits, labels)
        return MaskedLMOutput(loss, logits, out.hidden_states, out.attentions)


class Data2VecTextForCausalLM(_LanguageModel):
    """Predicts each next id; set ``config.is_decoder=True``, or every token sees the ones after
    it."""

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
    ) -> CausalLMOutputWithCrossAttentions:
        """See ``Data2VecTextModel.forward``; ``labels`` (B, T) are the input's own ids, -100 to
        leave out."""
        out = self.data2vec_text(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            encoder_hidden_states,
            encoder_attention_mask,
            past_key_values,
            use_cache if labels is None else False,
            output_attentions,
            output_hidden_states,
            head_mask,
            cache,
            return_dict=True,
        )
        logits = self._logits(out.last_hidden_state)
        loss = None if labels is None else token_loss(logits[:, :-1], labels[:, 1:])
        rest = {k: v for k, v in out.items() if k not in ("last_hidden_state", "pooler_output")}
        return CausalLMOutputWithCrossAttentions(loss, logits, **rest)
