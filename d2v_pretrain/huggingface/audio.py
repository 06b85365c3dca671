"""Data2VecAudioModel: the encoder of data2vec 1 audio with Hugging Face's interface."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface import parameter_names
from d2v_pretrain.huggingface.activations import activation
from d2v_pretrain.huggingface.audio_adapter import Adapter
from d2v_pretrain.huggingface.config_audio import Data2VecAudioConfig
from d2v_pretrain.huggingface.inputs import as_numbers, shape_of
from d2v_pretrain.huggingface.outputs import Wav2Vec2BaseModelOutput
from d2v_pretrain.huggingface.pretrained import PreTrained
from d2v_pretrain.huggingface.spec_augment import span_mask
from d2v_pretrain.masking.base import within
from d2v_pretrain.models.block import Block
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.models.positions import ConvPositions
from d2v_pretrain.models.stems import AudioStem
from d2v_pretrain.types import Tokens
from d2v_pretrain.weights.keymap import Names


class Data2VecAudioPreTrainedModel(PreTrained):
    """Base of the audio models."""

    config_class = Data2VecAudioConfig
    base_model_prefix = "data2vec_audio"
    main_input_name = "input_values"
    optional = ("adapter.", "masked_spec_embed")

    def init_module(self, module: nn.Module) -> None:
        """Start one module as transformers does: convolutions Kaiming-normal with biases
        U(+-1/sqrt(fan in)), biases of position convolutions 0, the stem's projection
        U(+-1/sqrt(its input channels)). Children are started before their parents."""
        super().init_module(module)
        if isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight)
            _uniform(module.bias, module.weight[0].numel())
        elif isinstance(module, ConvPositions):
            for conv in module.convs:
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        elif isinstance(module, AudioStem):
            _uniform(module.projection.weight, module.projection.in_features)
            _uniform(module.projection.bias, module.projection.in_features)

    def freeze_feature_encoder(self) -> None:
        """Stop training the stem's convolutions; the LayerNorm and projection after them go on."""
        for module in (*self.stem.convs, *self.stem.norms):
            module.requires_grad_(False)

    @property
    def stem(self) -> AudioStem:
        """The part of the encoder that turns a waveform into frames."""
        stem = self.encoder_module.stem
        assert isinstance(stem, AudioStem)
        return stem


def _uniform(parameter: Tensor | None, fan_in: int) -> None:
    if parameter is not None:
        nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5)


class Data2VecAudioModel(Data2VecAudioPreTrainedModel):
    """The encoder of data2vec 1.0 audio: waveform -> frames of 20 ms.

    Shapes: B clips of S samples and T frames, C channels of the stem, D of the encoder; H heads.

    Batches are padded on the right. In the published model the last real frames of a padded row (36
    in a base model) depend on the padding, because the position convolutions read what the
    LayerNorms between them made of it. The differences are of order 1.
    ``config.padding_invariant=True`` sets the padding to 0 before each of these convolutions, so
    that a row gets the frames that it gets alone. The weights are the same.
    """

    def __init__(self, config: Data2VecAudioConfig) -> None:
        super().__init__(config)
        self.encoder = _encoder(config)
        self.adapter = _adapter(config) if config.add_adapter else None
        self.init_weights()

    def names(self) -> Names:
        """Our parameter names -> transformers'."""
        c = self.config
        changed = c.output_hidden_size != c.hidden_size
        return parameter_names.audio(
            layers=len(c.conv_dim),
            bias=c.conv_bias,
            masked=_has_mask_vector(c),
            positions=c.num_conv_pos_embeddings,
            depth=c.num_hidden_layers,
            adapter=parameter_names.audio_adapter(c.num_adapter_layers, changed)
            if c.add_adapter
            else {},
        )

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        mask_time_indices: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Wav2Vec2BaseModelOutput | tuple:
        """Encode waveforms.

        Args:
            input_values: (B, S) normalised waveforms at 16 kHz. Silence is appended to clips
                shorter than one frame (400 samples).
            attention_mask: (B, S), 1 at samples and 0 at padding; only the number of ones of each
                row matters.
            mask_time_indices: (B, T) bool, the frames to replace by the mask vector. By default
                they are drawn in training and none otherwise.
            output_attentions: return the attention probabilities of each block.
            output_hidden_states: return the input of the first block and the output of each.
            return_dict: False for a tuple; ``config.return_dict`` by default.

        Returns:
            ``last_hidden_state`` (B, T, D), after the adapter if there is one; ``extract_features``
            (B, T, C), the stem's output before its projection; ``hidden_states`` depth + 1 of (B,
            T, D); ``attentions`` (B, H, T, T) of each block that ran.

        Raises:
            ConfigError: shapes that do not fit; whole-numbered samples; frames to mask without a
                mask vector.
        """
        input_values = as_numbers("input_values", input_values, "clips", "samples")
        features = self.stem.features(input_values.to(self.stem.projection.weight.dtype))
        lengths = None
        if attention_mask is not None:
            lengths = self._stem_lengths(input_values, attention_mask)
        x = F.dropout(self.stem.projection(features), self.config.feat_proj_dropout, self.training)
        x = self._masked(x, lengths, mask_time_indices)
        valid = None if lengths is None else within(lengths, x.shape[1])
        trace, states = self.trace(output_hidden_states, output_attentions)
        # A trace keeps every state, so it is given to the encoder only if it is needed.
        traced = states or trace.attentions is not None
        x = self.encoder(Tokens(x, x.shape[1:2], valid), trace=trace if traced else None).x
        x = x if self.adapter is None else self.adapter(x, lengths)
        output = Wav2Vec2BaseModelOutput(
            x,
            features,
            tuple(trace.hidden) if states else None,
            None if trace.attentions is None else tuple(trace.attentions),
        )
        return self.returned(output, return_dict)

    def frames(
        self, input_values: Tensor, attention_mask: Tensor | None, adapted: bool = True
    ) -> Tensor:
        """The number of real frames (B,) of ``last_hidden_state``; with ``adapted=False`` that of
        the blocks' outputs, before the adapter."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_values, dtype=torch.bool)
        lengths = self._stem_lengths(input_values, attention_mask)
        return self.adapter.lengths(lengths) if adapted and self.adapter is not None else lengths

    def _stem_lengths(self, input_values: Tensor, attention_mask: Tensor) -> Tensor:
        if attention_mask.shape != input_values.shape:
            rule = f"must have the shape of input_values, {tuple(input_values.shape)}"
            raise ConfigError("attention_mask", shape_of(attention_mask), rule)
        lengths = self.stem.token_lengths(attention_mask.long().sum(-1))
        assert lengths is not None
        return lengths

    def _masked(self, x: Tensor, lengths: Tensor | None, chosen: Tensor | None) -> Tensor:
        """SpecAugment: replace frames of ``x`` (B, T, D) by the mask vector, zero channels."""
        c, vector, (rows, frames, channels) = self.config, self.stem.mask_vector, x.shape
        if not c.apply_spec_augment:
            return x
        if chosen is None and self.training and c.mask_time_prob > 0:
            spans = c.mask_time_prob, c.mask_time_length, c.mask_time_min_masks
            chosen = span_mask(rows, frames, *spans, lengths, x.device)
        if chosen is not None and chosen.shape != (rows, frames):
            rule = f"must be {(rows, frames)}, clips by frames"
            raise ConfigError("mask_time_indices", shape_of(chosen), rule)
        if chosen is not None and vector is None:
            rule = "has no vector to stand for masked frames: the configuration masks nothing"
            raise ConfigError("mask_time_indices", "given", rule, "set mask_time_prob above 0")
        if chosen is not None and vector is not None:
            x = torch.where(chosen.bool()[..., None], vector.to(x.dtype), x)
        if self.training and c.mask_feature_prob > 0:
            if c.mask_feature_length > channels:
                rule = f"must fit in hidden_size, {channels}"
                raise ConfigError("mask_feature_length", c.mask_feature_length, rule)
            spans = c.mask_feature_prob, c.mask_feature_length, c.mask_feature_min_masks
            x = x.masked_fill(span_mask(rows, channels, *spans, None, x.device)[:, None], 0.0)
        return x


def _has_mask_vector(c: Data2VecAudioConfig) -> bool:
    return c.mask_time_prob > 0 or c.mask_feature_prob > 0


def _encoder(c: Data2VecAudioConfig) -> Encoder:
    width, eps, stem_activation = (
        c.hidden_size,
        c.layer_norm_eps,
        activation(c.feat_extract_activation),
    )
    block = partial(
        Block,
        width,
        c.num_attention_heads,
        c.mlp_ratio,
        dropout=c.hidden_dropout,
        attention_dropout=c.attention_dropout,
        activation_dropout=c.activation_dropout,
        norm_eps=eps,
        activation=activation(c.hidden_act),
    )
    layers = list(zip(c.conv_dim, c.conv_kernel, c.conv_stride, strict=True))
    masked = _has_mask_vector(c)
    stem = AudioStem(width, layers, c.conv_bias, masked, "kaiming", eps, stem_activation)
    positions = ConvPositions(
        width,
        c.num_conv_pos_embeddings,
        c.num_conv_pos_embeddings * c.conv_pos_kernel_size,
        c.num_conv_pos_embedding_groups,
        c.padding_invariant,
        stem_activation,
    )
    return Encoder(
        stem,
        block,
        width,
        c.num_hidden_layers,
        positions,
        input_dropout=c.hidden_dropout,
        layer_drop=c.layerdrop,
        zero_padding=True,
        norm_eps=eps,
    )


def _adapter(c: Data2VecAudioConfig) -> Adapter:
    assert c.output_hidden_size is not None
    sizes = c.hidden_size, c.output_hidden_size, c.num_adapter_layers
    return Adapter(*sizes, c.adapter_kernel_size, c.adapter_stride, c.padding_invariant)
