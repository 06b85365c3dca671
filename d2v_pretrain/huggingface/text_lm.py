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

    def resize(self, rows: int) -> None:
        """Give bias and decoder another number of rows; new ones are 0."""

        def resized(old: Tensor) -> nn.Parameter:
            kept = min(rows, len(old))
            new = torch.cat([old.detach()[:kept], old.new_zeros(rows - kept, *old.shape[1:])])
            return nn.Parameter(new, old.requires_grad)

        self.bias = resized(self.bias)
        if self.decoder is not None:
            self.decoder.weight, self.decoder.bias = map(resized, self.decoder.parameters())
            self.decoder.out_features = rows

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (texts, tokens, D) -> what the decoder reads, of that shape, and ``bias``."""
        return self.layer_norm(F.gelu(self.dense(x))), self.bias


class LanguageModel(TextHead):
    """A base model without pooler, and a head over the vocabulary."""

    def __init__(self, config: Data2VecTextConfig) -> None:
        super().__init__(config)
        self.lm_head = LMHead(config)
        self.init_weights()

    def get_output_embeddings(self) -> nn.Linear:
        """The layer over the vocabulary. If it is tied, its weight is the table of tokens and its
        bias that of the head: the very parameters, in a layer that is made for the caller."""
        if self.lm_head.decoder is not None:
            return self.lm_head.decoder
        table = self.get_input_embeddings().weight
        layer = nn.Linear(table.shape[1], table.shape[0], device="meta")
        layer.weight, layer.bias = table, self.lm_head.bias
        return layer

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the layer over the vocabulary, or of a tied one the bias: its weight stays the
        table of tokens."""
        assert isinstance(new_embeddings, nn.Linear)
        if self.lm_head.decoder is not None:
            self.lm_head.decoder = new_embeddings
        elif new_embeddings.bias is not None:
            self.lm_head.bias = new_embeddings.bias

    def resize_token_embeddings(self, *args: Any, **options: Any) -> nn.Embedding:
        """See ``Data2VecTextPreTrainedModel``. New tokens start with a bias of 0."""
        table = super().resize_token_embeddings(*args, **options)
        self.lm_head.resize(table.num_embeddings)
        return table

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
        assert out.last_hidden_state is not None
        logits = self.logits(out.last_hidden_state)
        return token_loss(logits, labels), logits

    def logits(self, x: Tensor) -> Tensor:
        """Tokens (texts, tokens, D) -> logits (texts, tokens, vocabulary)."""
        x, bias = self.lm_head(x)
        decoder = self.lm_head.decoder
        return self.get_input_embeddings()(x, bias) if decoder is None else decoder(x)


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
        return_dict: bool | None = None,
        head_mask: Tensor | None = None,
    ) -> ModelOutput | tuple:
        """Run the base model and the head; arguments as in ``Data2VecTextModel.forward``, labels as
        the class says."""
        return self.run(
            labels,
            *(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds),
            *(encoder_hidden_states, encoder_attention_mask),
            use_cache=False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
            head_mask=head_mask,
        )


class Data2VecTextForCausalLM(LanguageModel):
    """Predicts the next token: ``labels`` (texts, tokens) are the ids of the input, -100 to
    leave a token out.

    ``config.is_decoder`` should be True. Otherwise every token sees the ones after it.
    """

    output = CausalLMOutputWithCrossAttentions
    accepts_loss_kwargs = True
    loss_type = "ForCausalLM"  # its loss shifts the labels by one

    @classmethod
    def can_generate(cls) -> bool:
        """True: see ``generate``."""
        return True

    @property
    def generation_config(self) -> Any:
        """How transformers' ``generate`` would generate by default; pipelines ask for it."""
        return self.to_transformers().generation_config

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
        return_dict: bool | None = None,
        head_mask: Tensor | None = None,
        cache: Past | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
    ) -> ModelOutput | tuple:
        """Run the base model and the head; arguments as in ``Data2VecTextModel.forward``, labels as
        the class says. With labels no cache is returned.

        Args:
            logits_to_keep: compute the logits of the last tokens only, that many; 0 for all. A
                tensor holds the indices of tokens.
            num_items_in_batch: divide the sum of the loss by this, instead of by the number of
                labels: Hugging Face's Trainer accumulates gradients over several batches so.
        """
        return self.run(
            (labels, logits_to_keep, num_items_in_batch),
            *(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds),
            *(encoder_hidden_states, encoder_attention_mask),
            past_key_values=past_key_values,
            use_cache=use_cache if labels is None else False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
            head_mask=head_mask,
            cache=cache,
        )

    def read(
        self, out: BaseModelOutputWithPoolingAndCrossAttentions, labels: Any
    ) -> tuple[Any, ...]:
        """The cross entropy of each next token, and the logits."""
        following, kept, count = labels
        x = out.last_hidden_state
        assert x is not None
        logits = self.logits(x[:, -kept if kept else 0 :] if isinstance(kept, int) else x[:, kept])
        if following is None:
            return None, logits
        # In float32 whatever the model's precision, as in transformers.
        ids = class_ids(following, logits.shape[-1], *x.shape[:2], unlimited=True)
        ids = ids.view(x.shape[:2])[:, 1:]
        loss = token_loss(logits[:, :-1].float(), ids)
        assert loss is not None
        if count is not None:
            loss = loss * (ids != -100).sum() / count
        return loss, logits
