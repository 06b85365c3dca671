"""Data2VecVisionModel and its head for image classification, on the encoder of pretraining."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface import names_vision as hf_vision
from d2v_pretrain.huggingface.config import ACTIVATIONS, Data2VecVisionConfig
from d2v_pretrain.huggingface.losses import classification_loss
from d2v_pretrain.huggingface.outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from d2v_pretrain.huggingface.pretrained import PreTrained
from d2v_pretrain.models.block import Block, Context
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.models.positions import LearnedPositions, RelativeBias
from d2v_pretrain.models.stems import VisionStem
from d2v_pretrain.types import Batch, Mask, Tokens
from d2v_pretrain.weights.keymap import Names, affine

MASK_TOKEN = "embeddings.mask_token"


class Data2VecVisionPreTrainedModel(PreTrained):
    """What the vision classes share: their configuration, how weights start, and what is done to
    weights of files."""

    config_class = Data2VecVisionConfig
    base_model_prefix = "data2vec_vision"
    optional = (MASK_TOKEN, "layernorm.", "pooler.")

    def init_module(self, module: nn.Module) -> None:
        """transformers' start: convolutions as linear layers; CLS, mask and position vectors and
        tables 0."""
        super().init_module(module)
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, VisionStem) and module.mask_vector is not None:
            nn.init.zeros_(module.mask_vector)
        elif isinstance(module, Encoder):
            nn.init.zeros_(module.extra)

    def to_file(self) -> dict[str, Tensor]:
        """All tensors under the file's names; the mask token has two more axes there."""
        return {
            k: t.view(1, 1, -1) if k.endswith(MASK_TOKEN) else t
            for k, t in super().to_file().items()
        }

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Leave out the index that old files hold. A model with a table in every block, but none
        for all, that reads a file with one for all gets a copy of it in every block, as in the
        original fine-tuning."""
        state = {
            key: tensor
            for key, tensor in state.items()
            if not key.endswith("relative_position_index")
        }
        shared = next((key for key in state if key.endswith(f"encoder.{hf_vision.TABLE}")), None)
        c = self.config
        if (
            shared is None
            or c.use_shared_relative_position_bias
            or not c.use_relative_position_bias
        ):
            return state
        prefix, table = shared.removesuffix(hf_vision.TABLE), state.pop(shared)
        keys = (
            f"{prefix}layer.{i}.attention.attention.{hf_vision.TABLE}"
            for i in range(c.num_hidden_layers)
        )
        return dict.fromkeys(keys, table) | state


class Data2VecVisionModel(Data2VecVisionPreTrainedModel):
    """The encoder of data2vec 1.0 vision: image -> a CLS token and one token for each patch.

    Images may be of any size: tables of positions made for ``config.image_size`` are resized to the
    image's grid. Sides that are no multiple of the patch's lose the rest at the right and at the
    bottom.

    Args:
        config: sizes and rates.
        add_pooling_layer: pool the tokens; see ``VisionPooler``.
    """

    def __init__(self, config: Data2VecVisionConfig, add_pooling_layer: bool = False) -> None:
        super().__init__(config)
        self.encoder = _encoder(config)
        self.pooler = VisionPooler(config) if add_pooling_layer else None
        self.init_weights()

    def names(self) -> Names:
        """Our parameter names -> transformers'."""
        c = self.config
        absolute, shared = c.use_absolute_position_embeddings, c.use_shared_relative_position_bias
        pooled = self.pooler is not None and c.use_mean_pooling
        return {
            **hf_vision.vision_encoder(
                c.num_hidden_layers,
                c.use_mask_token,
                absolute,
                shared,
                c.use_relative_position_bias,
                c.layer_scale_init_value > 0,
            ),
            **({} if c.use_mean_pooling else affine("encoder.final_norm", "layernorm")),
            **(affine("pooler.layernorm", "pooler.layernorm") if pooled else {}),
        }

    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool = False,
        head_mask: Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: (B, C, height, width) normalised images.
            bool_masked_pos: (B, N) true at patches to replace by the mask token.
            output_attentions: return the attention probabilities of each block.
            output_hidden_states: return the blocks' input and each block's output, before any norm.
            interpolate_pos_encoding: without effect, as in transformers 5: tables always fit the
                image.
            head_mask: (H,) or (depth, H), 0 for attention heads to silence.

        Returns:
            ``last_hidden_state`` (B, 1 + N, D), CLS first, normalised unless ``use_mean_pooling``;
            ``pooler_output`` (B, D) or None; ``hidden_states`` depth + 1 of (B, 1 + N, D);
            ``attentions`` (B, H, 1 + N, 1 + N) of each block.

        Raises:
            ConfigError: shapes that do not fit; patches to mask without a mask token.
        """
        trace, states = self.trace(output_hidden_states, output_attentions)
        asked = states or trace.attentions is not None  # else every state would be kept for nothing
        contexts = [Context(heads=h) for h in self.heads(head_mask)]
        tokens = self._tokens(pixel_values, bool_masked_pos)
        x = self.encoder(tokens, trace=trace if asked else None, contexts=contexts).x
        pooled = None if self.pooler is None else self.pooler(x)
        attentions = None if trace.attentions is None else tuple(trace.attentions)
        return BaseModelOutputWithPooling(
            x, pooled, tuple(trace.hidden) if states else None, attentions
        )

    def grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """(rows, columns) of patches of (B, C, height, width) images."""
        (height, width), (down, right) = pixel_values.shape[-2:], self.config.patch_sides
        return height // down, width // right

    def _tokens(self, pixel_values: Tensor, bool_masked_pos: Tensor | None) -> Tokens:
        c, shape, stem = self.config, tuple(pixel_values.shape), self.encoder.stem
        assert isinstance(stem, VisionStem)
        if len(shape) != 4 or shape[1] != c.num_channels or min(self.grid(pixel_values)) < 1:
            rule = f"must be (batch, {c.num_channels}, height, width), at least a patch of {c.patch_sides} pixels"
            raise ConfigError("pixel_values", f"of shape {shape}", rule)
        (rows, columns), (down, right) = self.grid(pixel_values), c.patch_sides
        images = pixel_values[..., : rows * down, : columns * right].to(
            stem.projection.weight.dtype
        )
        batch = Batch(images, torch.arange(shape[0]))
        tokens = stem(batch)
        if bool_masked_pos is None:
            return tokens
        if stem.mask_vector is None:
            rule = "needs a vector to stand for masked patches"
            raise ConfigError("bool_masked_pos", "given", rule, "set use_mask_token=True")
        if tuple(bool_masked_pos.shape) != (shape[0], rows * columns):
            rule = f"must be {(shape[0], rows * columns)}, images by patches"
            raise ConfigError("bool_masked_pos", f"of shape {tuple(bool_masked_pos.shape)}", rule)
        return stem.replaced(batch, tokens, Mask.of(bool_masked_pos.bool()))


def _encoder(c: Data2VecVisionConfig) -> Encoder:
    table = partial(RelativeBias, c.num_attention_heads, c.window, resize=True)
    block = partial(
        Block,
        c.hidden_size,
        c.num_attention_heads,
        c.mlp_ratio,
        norm_first=True,
        dropout=c.hidden_dropout_prob,
        attention_dropout=c.attention_probs_dropout_prob,
        layer_scale=c.layer_scale_init_value if c.layer_scale_init_value > 0 else None,
        norm_eps=c.layer_norm_eps,
        key_bias=False,
        activation=ACTIVATIONS[c.hidden_act],
    )
    return Encoder(
        VisionStem(c.hidden_size, c.patch_sides, c.num_channels, c.use_mask_token),
        block,
        c.hidden_size,
        c.num_hidden_layers,
        LearnedPositions(c.hidden_size, c.window) if c.use_absolute_position_embeddings else None,
        table() if c.use_shared_relative_position_bias else None,
        extra_tokens=1,
        input_norm=False,
        final_norm=not c.use_mean_pooling,
        input_dropout=c.hidden_dropout_prob,
        drop_path=c.drop_path_rate,
        norm_eps=c.layer_norm_eps,
        layer_bias=table if c.use_relative_position_bias else None,
    )


class VisionPooler(nn.Module):
    """(B, 1 + N, D) -> (B, D): the LayerNorm of the mean over patches with ``use_mean_pooling``,
    else the CLS token.

    Args:
        config: sizes and rates.
    """

    def __init__(self, config: Data2VecVisionConfig) -> None:
        super().__init__()
        mean = config.use_mean_pooling
        self.layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps) if mean else None

    def forward(self, x: Tensor) -> Tensor:
        """Pool; CLS is no patch."""
        return x[:, 0] if self.layernorm is None else self.layernorm(x[:, 1:].mean(1))


class Data2VecVisionForImageClassification(Data2VecVisionPreTrainedModel):
    """The encoder, a pooler and a linear classifier; with ``num_labels=0`` logits are what the
    pooler makes.

    Args:
        config: sizes, rates and labels.
    """

    def __init__(self, config: Data2VecVisionConfig) -> None:
        super().__init__(config)
        self.data2vec_vision = Data2VecVisionModel(config, add_pooling_layer=True)
        labels = config.num_labels
        self.classifier = nn.Linear(config.hidden_size, labels) if labels else nn.Identity()
        self.init_weights()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool = False,
        head_mask: Tensor | None = None,
    ) -> ImageClassifierOutput:
        """Classify images.

        Args:
            pixel_values: see ``Data2VecVisionModel``, as are the other arguments.
            labels: (B,) class ids, or (B,) numbers for one label, or (B, C) of 0 and 1 for several
                at once; see ``classification_loss``.

        Returns:
            ``loss`` if there are labels, ``logits`` (B, C), and what was asked for.
        """
        out = self.data2vec_vision(
            pixel_values,
            None,
            output_attentions,
            output_hidden_states,
            head_mask=head_mask,
            return_dict=True,
        )
        logits = self.classifier(out.pooler_output)
        loss = (
            None
            if labels is None
            else classification_loss(logits, labels, self.config.problem_type)
        )
        return ImageClassifierOutput(loss, logits, out.hidden_states, out.attentions)
