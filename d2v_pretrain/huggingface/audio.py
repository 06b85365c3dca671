"""Data2VecAudioModel and its head for speech recognition, on the encoder of pretraining."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface import names_audio as hf_audio
from d2v_pretrain.huggingface.audio_adapter import Adapter
from d2v_pretrain.huggingface.audio_masking import span_mask
from d2v_pretrain.huggingface.config import ACTIVATIONS, Data2VecAudioConfig
from d2v_pretrain.huggingface.outputs import CausalLMOutput, Wav2Vec2BaseModelOutput
from d2v_pretrain.huggingface.pretrained import PreTrained
from d2v_pretrain.masking.base import within
from d2v_pretrain.models.block import Block
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.models.positions import ConvPositions
from d2v_pretrain.models.stems import AudioStem
from d2v_pretrain.types import Tokens
from d2v_pretrain.weights.keymap import Names


class Data2VecAudioPreTrainedModel(PreTrained):
    """What the audio classes share: their configuration and how their weights start."""

    config_class = Data2VecAudioConfig
    base_model_prefix = "data2vec_audio"
    optional = ("adapter.", "masked_spec_embed")

    def init_module(self, module: nn.Module) -> None:
        """transformers' start: convolutions Kaiming-normal with bias U(+-1/sqrt(fan in)), position
        convolutions with bias 0; the stem's projection U(+-1/sqrt(C)). Children come before their
        parents."""
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
        """Train the convolutions no more; the LayerNorm and the projection behind them go on."""
        for module in (*self.stem.convs, *self.stem.norms):
            module.requires_grad_(False)

    @property
    def stem(self) -> AudioStem:
        """Waveform -> frames, of the same class that is pretrained."""
        stem = self.encoder_module.stem
        assert isinstance(stem, AudioStem)
        return stem


def _uniform(parameter: Tensor | None, fan_in: int) -> None:
    if parameter is not None:
        nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5)


class Data2VecAudioModel(Data2VecAudioPreTrainedModel):
    """The encoder of data2vec 1.0 audio: waveform -> frames of 20 ms.

    Batches are padded on the right. As published, the real frames near the end of a padded row
    depend on the padding:
    the position convolutions read what the LayerNorms between them made of it (the last 36 frames
    of a base model, differences of order 1). ``config.padding_invariant=True`` zeroes the padding
    before each of them, so that a row's real frames are those of the row alone; the weights are the
    same.

    Args:
        config: sizes and rates.
    """

    def __init__(self, config: Data2VecAudioConfig) -> None:
        super().__init__(config)
        self.encoder = _encoder(config)
        self.adapter = _adapter(config) if config.add_adapter else None
        self.init_weights()

    def names(self) -> Names:
        """Our parameter names -> transformers'."""
        c = self.config
        adapter = hf_audio.audio_adapter(
            c.num_adapter_layers, c.output_hidden_size != c.hidden_size
        )
        return {
            **hf_audio.audio_stem(len(c.conv_dim), c.conv_bias, _has_mask_vector(c)),
            **hf_audio.audio_encoder(c.num_conv_pos_embeddings, c.num_hidden_layers),
            **(adapter if c.add_adapter else {}),
        }

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        mask_time_indices: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> Wav2Vec2BaseModelOutput:
        """Encode waveforms.

        Args:
            input_values: (B, S) normalised waveforms at 16 kHz. A clip shorter than one frame (400
                samples) gets silence behind it.
            attention_mask: (B, S), 1 at samples and 0 at padding; only the number of ones of each
                row matters.
            mask_time_indices: (B, T) bool frames to replace by the mask vector; in training drawn
                if not given.
            output_attentions: return the attention probabilities of each block.
            output_hidden_states: return the blocks' input and each block's output.

        Returns:
            ``last_hidden_state`` (B, T, D), after the adapter if there is one; ``extract_features``
            (B, T, C), the stem's output before its projection; ``hidden_states`` depth + 1 of (B,
            T, D); ``attentions`` (B, H, T, T) of each block that ran.

        Raises:
            ConfigError: shapes that do not fit; frames to mask without a mask vector.
        """
        if input_values.ndim != 2:
            rule = "must be clips by samples"
            raise ConfigError(
                "input_values",
                f"of shape {tuple(input_values.shape)}",
                rule,
                "write x[None] for one clip",
            )
        features = self.stem.features(input_values)
        lengths = (
            None if attention_mask is None else self._stem_lengths(input_values, attention_mask)
        )
        x = F.dropout(self.stem.projection(features), self.config.feat_proj_dropout, self.training)
        x = self._masked(x, lengths, mask_time_indices)
        valid = None if lengths is None else within(lengths, x.shape[1])
        trace, states = self.trace(output_hidden_states, output_attentions)
        asked = states or trace.attentions is not None  # else every state would be kept for nothing
        x = self.encoder(Tokens(x, x.shape[1:2], valid), trace=trace if asked else None).x
        x = x if self.adapter is None else self.adapter(x, lengths)
        attentions = None if trace.attentions is None else tuple(trace.attentions)
        return Wav2Vec2BaseModelOutput(
            x, features, tuple(trace.hidden) if states else None, attentions
        )

    def frames(
        self, input_values: Tensor, attention_mask: Tensor | None, adapted: bool = True
    ) -> Tensor:
        """(B,) real frames of ``last_hidden_state``, or with ``adapted=False`` of the blocks'
        outputs."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_values, dtype=torch.bool)
        lengths = self._stem_lengths(input_values, attention_mask)
        return self.adapter.lengths(lengths) if adapted and self.adapter is not None else lengths

    def _stem_lengths(self, input_values: Tensor, attention_mask: Tensor) -> Tensor:
        if attention_mask.shape != input_values.shape:
            rule = f"must have the shape of input_values, {tuple(input_values.shape)}"
            raise ConfigError("attention_mask", f"of shape {tuple(attention_mask.shape)}", rule)
        lengths = self.stem.token_lengths(attention_mask.long().sum(-1))
        assert lengths is not None
        return lengths

    def _masked(self, x: Tensor, lengths: Tensor | None, chosen: Tensor | None) -> Tensor:
        """(B, T, D) with frames replaced and channels zeroed (SpecAugment)."""
        c, vector, (rows, frames, channels) = self.config, self.stem.mask_vector, x.shape
        if not c.apply_spec_augment:
            return x
        if chosen is None and self.training and c.mask_time_prob > 0:
            spans = c.mask_time_prob, c.mask_time_length, c.mask_time_min_masks
            chosen = span_mask(rows, frames, *spans, lengths, x.device)
        if chosen is not None and chosen.shape != (rows, frames):
            rule = f"must be {(rows, frames)}, clips by frames"
            raise ConfigError("mask_time_indices", f"of shape {tuple(chosen.shape)}", rule)
        if chosen is not None and vector is None:
            rule = "has no vector to stand for masked frames: the configuration masks nothing"
            raise ConfigError("mask_time_indices", "given", rule, "set mask_time_prob above 0")
        if chosen is not None and vector is not None:
            x = torch.where(chosen.bool()[..., None], vector.to(x.dtype), x)
        if self.training and c.mask_feature_prob > 0:
            if c.mask_feature_length > channels:
                raise ConfigError(
                    "mask_feature_length",
                    c.mask_feature_length,
                    f"must fit in hidden_size, {channels}",
                )
            spans = c.mask_feature_prob, c.mask_feature_length, c.mask_feature_min_masks
            x = x.masked_fill(span_mask(rows, channels, *spans, None, x.device)[:, None], 0.0)
        return x


def _has_mask_vector(c: Data2VecAudioConfig) -> bool:
    return c.mask_time_prob > 0 or c.mask_feature_prob > 0


def _encoder(c: Data2VecAudioConfig) -> Encoder:
    activation, width = ACTIVATIONS[c.feat_extract_activation], c.hidden_size
    layers = list(zip(c.conv_dim, c.conv_kernel, c.conv_stride, strict=True))
    block = partial(
        Block,
        width,
        c.num_attention_heads,
        c.mlp_ratio,
        dropout=c.hidden_dropout,
        attention_dropout=c.attention_dropout,
        activation_dropout=c.activation_dropout,
        norm_eps=c.layer_norm_eps,
        activation=ACTIVATIONS[c.hidden_act],
    )
    kernels = c.num_conv_pos_embeddings * c.conv_pos_kernel_size
    return Encoder(
        AudioStem(
            width, layers, c.conv_bias, _has_mask_vector(c), "kaiming", c.layer_norm_eps, activation
        ),
        block,
        width,
        c.num_hidden_layers,
        ConvPositions(
            width,
            c.num_conv_pos_embeddings,
            kernels,
            c.num_conv_pos_embedding_groups,
            c.padding_invariant,
            activation,
        ),
        input_dropout=c.hidden_dropout,
        layer_drop=c.layerdrop,
        zero_padding=True,
        norm_eps=c.layer_norm_eps,
    )


def _adapter(c: Data2VecAudioConfig) -> Adapter:
    assert c.output_hidden_size is not None
    sizes = c.hidden_size, c.output_hidden_size, c.num_adapter_layers
    return Adapter(*sizes, c.adapter_kernel_size, c.adapter_stride, c.padding_invariant)


class Data2VecAudioForCTC(Data2VecAudioPreTrainedModel):
    """Dropout and one linear layer over frames: speech recognition by connectionist temporal
    classification.

    Args:
        config: ``vocab_size`` characters, the blank among them.
    """

    def __init__(self, config: Data2VecAudioConfig) -> None:
        super().__init__(config)
        self.data2vec_audio = Data2VecAudioModel(config)
        width = (config.add_adapter and config.output_hidden_size) or config.hidden_size
        self.lm_head = nn.Linear(width, config.vocab_size)
        self.init_weights()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> CausalLMOutput:
        """Logits of characters, and the CTC loss of ``labels``.

        Args:
            input_values: see ``Data2VecAudioModel``; so are the other arguments.
            attention_mask: see there.
            labels: (B, U) int64 characters; negative ones and the blank (``pad_token_id``) are
                padding.
            output_attentions: see there.
            output_hidden_states: see there.

        Returns:
            ``loss`` () float32, reduced as ``ctc_loss_reduction`` says; ``logits`` (B, T,
            vocab_size).

        Raises:
            ConfigError: a label that is not in the vocabulary; see also ``Data2VecAudioModel``.
        """
        outputs = self.data2vec_audio(
            input_values,
            attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        x = F.dropout(outputs.last_hidden_state, self.config.final_dropout, self.training)
        logits = self.lm_head(x)
        loss = None
        if labels is not None:
            loss = self._loss(
                logits, labels, self.data2vec_audio.frames(input_values, attention_mask)
            )
        return CausalLMOutput(loss, logits, outputs.hidden_states, outputs.attentions)

    def _loss(self, logits: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
        c = self.config
        if c.pad_token_id is None:
            raise ConfigError(
                "pad_token_id", None, "must be the id of the CTC blank", "set pad_token_id=0"
            )
        if labels.max() >= c.vocab_size:
            raise ConfigError(
                "labels", int(labels.max()), f"must be below vocab_size, {c.vocab_size}"
            )
        real = (labels >= 0) & (labels != c.pad_token_id)
        chances = logits.log_softmax(-1, dtype=torch.float32).transpose(0, 1)
        counts, reduction = real.sum(-1), c.ctc_loss_reduction
        with torch.backends.cudnn.flags(
            enabled=False
        ):  # as transformers: cuDNN's has other limits, and other numbers
            return F.ctc_loss(
                chances,
                labels[real],
                lengths,
                counts,
                c.pad_token_id,
                reduction,
                zero_infinity=c.ctc_zero_infinity,
            )
