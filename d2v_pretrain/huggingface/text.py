"""Data2VecTextModel: the encoder of data2vec 1 text with Hugging Face's interface, or a decoder of
the same shape."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface import parameter_names
from d2v_pretrain.huggingface.activations import activation
from d2v_pretrain.huggingface.config_text import Data2VecTextConfig
from d2v_pretrain.huggingface.inputs import as_ids, as_numbers, shape_of
from d2v_pretrain.huggingface.outputs import (
    CACHE,
    BaseModelOutputWithPoolingAndCrossAttentions,
    Past,
)
from d2v_pretrain.huggingface.text_base import Data2VecTextPreTrainedModel
from d2v_pretrain.models.attention import KeyValues
from d2v_pretrain.models.block import Block, Context
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.models.stems import TextStem
from d2v_pretrain.types import Tokens
from d2v_pretrain.weights.keymap import Names

_TOKENS = ("texts", "tokens")


class Data2VecTextModel(Data2VecTextPreTrainedModel):
    """The text encoder of data2vec 1, or a decoder of the same shape (``config.is_decoder``).

    Shapes: B texts of T tokens and, if cached, P earlier tokens; D channels; H attention heads; S
    tokens of another encoder.

    Args:
        config: sizes and rates.
        add_pooling_layer: add a pooler, ``tanh`` of a linear layer of the first token.
    """

    def __init__(self, config: Data2VecTextConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        width, dropout, eps = config.hidden_size, config.hidden_dropout_prob, config.layer_norm_eps
        usable = config.max_position_embeddings - config.pad_token_id - 1
        stem = TextStem(
            width,
            config.vocab_size,
            usable,
            dropout,
            eps,
            config.pad_token_id,
            config.type_vocab_size,
        )
        block = partial(
            Block,
            width,
            config.num_attention_heads,
            config.mlp_ratio,
            dropout=dropout,
            attention_dropout=config.attention_probs_dropout_prob,
            norm_eps=eps,
            activation=activation(config.hidden_act),
            cross=config.add_cross_attention,
        )
        self.encoder = Encoder(stem, block, width, config.num_hidden_layers, input_norm=False)
        self.pooler = nn.Linear(width, width) if add_pooling_layer else None
        self.init_weights()

    def names(self) -> Names:
        """Our parameter names -> transformers'."""
        c = self.config
        return parameter_names.text(
            c.num_hidden_layers, c.add_cross_attention, self.pooler is not None
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
        past_key_values: Past | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        head_mask: Tensor | None = None,
        cache: Past | None = None,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions | tuple:
        """Encode token ids, or vectors in their place.

        Args:
            input_ids: (B, T).
            attention_mask: 0 at tokens that must not be attended to; (B, P + T) with the P tokens
                of the past, or (B, T, P + T), or bool (B, 1 or H, T, P + T). Without a mask padding
                is attended to, as in Hugging Face. A decoder also hides later tokens, unless the
                mask has more than two axes.
            token_type_ids: (B, T) segments; 0 by default.
            position_ids: (B, T) rows of the position table. By default tokens other than padding
                are counted from ``pad_token_id + 1`` on.
            inputs_embeds: (B, T, D) instead of ``input_ids``.
            encoder_hidden_states: (B, S, D) for cross attention.
            encoder_attention_mask: (B, S) for cross attention.
            past_key_values: the cache that an earlier call returned; ``input_ids`` are then the new
                tokens only.
            use_cache: a decoder returns its cache; ``config.use_cache`` by default.
            output_attentions: return attention probabilities; see ``Config`` for the default.
            output_hidden_states: return the input of the first block and the output of each.
            return_dict: False for a tuple; ``config.return_dict`` by default.
            head_mask: (H,) or (depth, H), 0 at attention heads to silence.
            cache: the name of ``past_key_values`` since transformers 5.24.

        Raises:
            ConfigError: not exactly one of ids and vectors; both names of the cache; states of
                another encoder without cross attention; too many tokens; other types or shapes.
            OutOfRange: ids, token types or positions beyond their tables, on the CPU.
        """
        if (input_ids is None) == (inputs_embeds is None):
            given, remedy = "neither" if input_ids is None else "both", "give one of them"
            raise ConfigError("input_ids, inputs_embeds", given, "must be exactly one", remedy)
        if past_key_values is not None and cache is not None:
            rule = "are two names of one argument"
            raise ConfigError("past_key_values, cache", "both", rule, "give one of them")
        known = past_key_values if cache is None else cache
        trace, states = self.trace(output_hidden_states, output_attentions)
        past = 0 if known is None else known[0][0].shape[2]
        x = self._embed(input_ids, token_type_ids, position_ids, inputs_embeds, past)
        caching = self._caches(use_cache)
        if encoder_hidden_states is not None:
            self._check_states(encoder_hidden_states, len(x))
        contexts = self._contexts(
            encoder_hidden_states, encoder_attention_mask, known, caching, head_mask
        )
        allowed = self._allowed(attention_mask, past, x)
        tokens = Tokens(x, x.shape[1:2])
        x = self.encoder(tokens, trace=trace, allowed=allowed, contexts=contexts).x
        output = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=x,
            pooler_output=None if self.pooler is None else self.pooler(x[:, 0]).tanh(),
            hidden_states=tuple(trace.hidden) if states else None,
            attentions=tuple(trace.attentions) if trace.attentions else None,
            cross_attentions=tuple(trace.cross_attentions) if trace.cross_attentions else None,
            **{CACHE: _cache(contexts) if caching else None},
        )
        return self.returned(output, return_dict)

    def _embed(
        self,
        ids: Tensor | None,
        types: Tensor | None,
        places: Tensor | None,
        vectors: Tensor | None,
        past: int,
    ) -> Tensor:
        """(B, T, D), with positions and segments added; ``past`` tokens come before them."""
        stem = self.encoder.stem
        assert isinstance(stem, TextStem) and stem.position is not None
        if ids is not None:
            vectors = stem.token(as_ids("input_ids", ids, stem.token.num_embeddings, *_TOKENS))
        else:
            vectors = as_numbers("inputs_embeds", vectors, *_TOKENS, "channels")
            _check_width("inputs_embeds", vectors, self.config.hidden_size)
            vectors = vectors.to(stem.token.weight.dtype)
        shape = vectors.shape[:2]
        if types is not None:
            types = _beside("token_type_ids", types, self.config.type_vocab_size, shape)
        if places is not None:
            places = _beside("position_ids", places, stem.position.num_embeddings, shape)
        else:
            real = torch.ones(vectors.shape[:2], dtype=torch.long, device=vectors.device)
            real = real if ids is None else (ids != stem.pad).long()
            places = (real.cumsum(1) + past) * real + stem.pad
            usable = stem.position.num_embeddings - stem.pad - 1
            # Padding has no position of its own, so only a long text is looked at on the CPU.
            if vectors.shape[1] + past > usable:
                longest = int(places.max()) - stem.pad
                if longest > usable:
                    tokens, rule = f"{longest} tokens", f"must be at most {usable}"
                    raise ConfigError("input_ids", tokens, rule, "truncate them")
        return stem.combine(vectors, places, types)

    def _check_states(self, states: Tensor, rows: int) -> None:
        """Check the states of another encoder, (B, S, D)."""
        key = "encoder_hidden_states"
        if not self.config.add_cross_attention:
            rule, remedy = (
                "cannot be read without cross attention",
                "set config.add_cross_attention=True",
            )
            raise ConfigError(key, tuple(states.shape), rule, remedy)
        _check_width(key, as_numbers(key, states, *_TOKENS, "channels"), self.config.hidden_size)
        if len(states) != rows:
            raise ConfigError(key, shape_of(states), f"must have a row for each of {rows} texts")

    def _allowed(self, mask: Tensor | None, past: int, x: Tensor) -> Tensor | None:
        """What each token may attend to: bool (B or 1, 1 or H, T, P + T), None for everything."""
        size = x.shape[1]
        allowed = None if mask is None else _readable(mask, past + size, len(x))
        # As in transformers, a decoder takes a mask for every token as it is: it says all.
        if not self.config.is_decoder or (mask is not None and mask.ndim > 2):
            return allowed
        back = torch.ones(size, past + size, dtype=torch.bool, device=x.device).tril(past)
        return back[None, None] if allowed is None else back[None, None] & allowed

    def _caches(self, use_cache: bool | None) -> bool:
        """Whether to return keys and values; not from blocks that are run twice, in a backward
        pass with checkpointing."""
        if not self.config.is_decoder or (self.encoder.checkpointing and self.training):
            return False
        return self.config.use_cache if use_cache is None else use_cache

    def _contexts(
        self,
        states: Tensor | None,
        mask: Tensor | None,
        past: Past | None,
        caching: bool,
        head_mask: Tensor | None,
    ) -> list[Context]:
        """For each block: the other encoder's states, the cache, and the heads to silence."""
        heads = self.heads(head_mask)
        bias = (
            None
            if mask is None or states is None
            else _readable(mask, states.shape[1], len(states))
        )
        if past is None and not caching:
            return [Context(states=states, bias=bias, heads=h) for h in heads]
        known = past or [()] * len(heads)
        return [
            Context(KeyValues(*k[:2]), states, bias, KeyValues(*k[2:4]), h)
            for k, h in zip(known, heads, strict=True)
        ]


def _beside(key: str, ids: Tensor, size: int, shape: torch.Size) -> Tensor:
    """Ids beside the tokens: of their shape, or one row for all texts."""
    ids = as_ids(key, ids[None] if torch.is_tensor(ids) and ids.ndim == 1 else ids, size, *_TOKENS)
    if ids.shape[1] != shape[1] or len(ids) not in (1, shape[0]):
        raise ConfigError(key, shape_of(ids), f"must be {tuple(shape)}, texts by tokens")
    return ids


def _check_width(key: str, x: Tensor, width: int) -> None:
    if x.shape[-1] != width:
        raise ConfigError(key, shape_of(x), f"must end in hidden_size, {width}")


def _readable(mask: Tensor, size: int, rows: int) -> Tensor:
    """A mask of two to four axes as bool (B or 1, 1 or H, 1 or T, S)."""
    if mask.ndim not in (2, 3, 4) or mask.shape[-1] != size or len(mask) not in (1, rows):
        rule = f"must end in all {size} tokens, those of the past included"
        raise ConfigError("attention_mask", tuple(mask.shape), f"{rule}, for each of {rows} texts")
    if mask.ndim == 4 and mask.dtype != torch.bool:
        # transformers 5 adds such a mask to the scores, so that 0 allows a token there.
        rule, remedy = "of four dimensions must be bool", "give mask == 0 instead"
        raise ConfigError("attention_mask", mask.dtype, rule, remedy)
    shape = {2: (slice(None), None, None), 3: (slice(None), None), 4: ()}[mask.ndim]
    return mask.bool()[shape]


def _cache(contexts: list[Context]) -> Past:
    """(keys, values) of each block, followed by those of its cross attention if it has one."""
    kept = [(c.past, c.past_states) if c.states is not None else (c.past,) for c in contexts]
    return tuple(
        tuple(t for part in parts if part for t in (part.keys, part.values) if t is not None)
        for parts in kept
    )
