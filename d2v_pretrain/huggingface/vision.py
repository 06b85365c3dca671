"""Data2VecVisionModel: the encoder of data2vec 1 vision with Hugging Face's interface."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface import parameter_names
from d2v_pretrain.huggingface.activations import activation
from d2v_pretrain.huggingface.config_vision import Data2VecVisionConfig
from d2v_pretrain.huggingface.inputs import shape_of
from d2v_pretrain.huggingface.outputs import BaseModelOutputWithPooling
from d2v_pretrain.huggingface.pretrained import PreTrained
from d2v_pretrain.models.block import Block, Context
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.models.positions import LearnedPositions, RelativeBias
from d2v_pretrain.models.stems import VisionStem
from d2v_pretrain.types import Batch, Mask, Tokens
from d2v_pretrain.weights.keymap import Names, affine

MASK_TOKEN = "embeddings.mask_token"


class Data2VecVisionPreTrainedModel(PreTrained):
    """Base of the vision models."""

    config_class = Data2VecVisionConfig
    base_model_prefix = "data2vec_vision"
    main_input_name = "pixel_values"
    optional = (MASK_TOKEN, "layernorm.", "pooler.")

    def get_input_embeddings(self) -> nn.Module:
        """The layer of patches, a convolution."""
        stem = self.encoder_module.stem
        assert isinstance(stem, VisionStem)
        return stem.projection

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the layer of patches."""
        self.encoder_module.stem.projection = value

    def init_module(self, module: nn.Module) -> None:
        """Start one module as transformers does: convolutions like linear layers; the CLS token,
        the mask token and tables of positions 0."""
        super().init_module(module)
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, VisionStem) and module.mask_vector is not None:
            nn.init.zeros_(module.mask_vector)
        elif isinstance(module, Encoder):
            nn.init.zeros_(module.extra)

    def to_file(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """See ``ModelFiles``. In files the mask token has two more axes."""
        tensors = super().to_file(state)
        for key in (key for key in tensors if key.endswith(MASK_TOKEN)):
            tensors[key] = tensors[key].view(1, 1, -1)
        return tensors

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Drop the index that old files hold, and give each block its table of positions.

        A fine-tuned model has a table in every block, a pretrained file one for all blocks. The
        table is then copied into every block, as in the original fine-tuning.
        """
        table, c = parameter_names.RELATIVE_TABLE, self.config
        state = {k: t for k, t in state.items() if not k.endswith("relative_position_index")}
        shared = next((key for key in state if key.endswith(f"encoder.{table}")), None)
        per_block = c.use_relative_position_bias and not c.use_shared_relative_position_bias
        if shared is None or not per_block:
            return state
        prefix, tensor = shared.removesuffix(table), state.pop(shared)
        blocks = range(c.num_hidden_layers)
        keys = [f"{prefix}layer.{i}.attention.attention.{table}" for i in blocks]
        return dict.fromkeys(keys, tensor) | state


class Data2VecVisionModel(Data2VecVisionPreTrainedModel):
    """The encoder of data2vec 1.0 vision: image -> a CLS token and one token for each patch.

    Shapes: B images of C colours and N patches, D channels of a token, H attention heads.

    Images may have any size: tables of positions, made for ``config.image_size``, are resized to
    the image's grid of patches. Pixels at the right and at the bottom that do not fill a patch are
    not read.

    Args:
        config: sizes and rates.
        add_pooling_layer: also pool the tokens, see ``VisionPooler``.
    """

    def __init__(self, config: Data2VecVisionConfig, add_pooling_layer: bool = False) -> None:
        super().__init__(config)
        self.encoder = _encoder(config)
        self.pooler = VisionPooler(config) if add_pooling_layer else None
        self.init_weights()

    def names(self) -> Names:
        """Our parameter names -> transformers'."""
        c = self.config
        pooled = self.pooler is not None and c.use_mean_pooling
        return {
            **parameter_names.vision(
                depth=c.num_hidden_layers,
                masked=c.use_mask_token,
                absolute=c.use_absolute_position_embeddings,
                shared=c.use_shared_relative_position_bias,
                per_layer=c.use_relative_position_bias,
                scaled=c.layer_scale_init_value > 0,
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
        return_dict: bool | None = None,
        head_mask: Tensor | None = None,
    ) -> BaseModelOutputWithPooling | tuple:
        """Encode images.

        Args:
            pixel_values: (B, C, height, width) normalised images.
            bool_masked_pos: (B, N), true at patches to replace by the mask token.
            output_attentions: return the attention probabilities of each block.
            output_hidden_states: return the input of the first block and the output of each,
                without the final norm.
            interpolate_pos_encoding: without effect, as in transformers 5: tables of positions are
                always resized.
            return_dict: False for a tuple; ``config.return_dict`` by default.
            head_mask: (H,) or (depth, H), 0 at attention heads to silence.

        Returns:
            ``last_hidden_state`` (B, 1 + N, D), CLS first, normalised unless ``use_mean_pooling``;
            ``pooler_output`` (B, D) or None; ``hidden_states`` depth + 1 of (B, 1 + N, D);
            ``attentions`` (B, H, 1 + N, 1 + N) of each block.

        Raises:
            ConfigError: shapes that do not fit; patches to mask without a mask token.
        """
        trace, states = self.trace(output_hidden_states, output_attentions)
        # A trace keeps every state, so it is given to the encoder only if it is needed.
        traced = states or trace.attentions is not None
        contexts = [Context(heads=h) for h in self.heads(head_mask)]
        tokens = self._tokens(pixel_values, bool_masked_pos)
        x = self.encoder(tokens, trace=trace if traced else None, contexts=contexts).x
        output = BaseModelOutputWithPooling(
            x,
            None if self.pooler is None else self.pooler(x),
            tuple(trace.hidden) if states else None,
            None if trace.attentions is None else tuple(trace.attentions),
        )
        return self.returned(output, return_dict)

    def grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """The number of rows and columns of patches in images (B, C, height, width)."""
        (height, width), (down, right) = pixel_values.shape[-2:], self.config.patch_sides
        return height // down, width // right

    def _check(self, pixel_values: Tensor) -> None:
        """Refuse what are no images of this model."""
        c, key = self.config, "pixel_values"
        if not torch.is_tensor(pixel_values) or pixel_values.is_complex():
            rule, remedy = "must be a tensor of real numbers", "use Data2VecVisionImageProcessor"
            raise ConfigError(key, f"of type {type(pixel_values).__name__}", rule, remedy)
        shape = pixel_values.shape
        four = len(shape) == 4 and shape[0] > 0 and shape[1] == c.num_channels
        if not four or min(self.grid(pixel_values)) < 1:
            rule = f"must be (batch, {c.num_channels}, height, width)"
            rule += f" with at least one patch of {c.patch_sides} pixels"
            raise ConfigError(key, shape_of(pixel_values), rule)

    def _tokens(self, pixel_values: Tensor, bool_masked_pos: Tensor | None) -> Tokens:
        c, stem = self.config, self.encoder.stem
        assert isinstance(stem, VisionStem)
        self._check(pixel_values)
        shape = tuple(pixel_values.shape)
        (rows, columns), (down, right) = self.grid(pixel_values), c.patch_sides
        images = pixel_values[..., : rows * down, : columns * right]
        batch = Batch(images.to(stem.projection.weight.dtype), torch.arange(shape[0]))
        tokens = stem(batch)
        if bool_masked_pos is None:
            return tokens
        if stem.mask_vector is None:
            rule = "needs a vector to stand for masked patches"
            raise ConfigError("bool_masked_pos", "given", rule, "set use_mask_token=True")
        if tuple(bool_masked_pos.shape) != (shape[0], rows * columns):
            rule = f"must be {(shape[0], rows * columns)}, images by patches"
            raise ConfigError("bool_masked_pos", shape_of(bool_masked_pos), rule)
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
        activation=activation(c.hidden_act),
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
    """The CLS token and N patches (B, 1 + N, D) of B images -> features of the images (B, D): with
    ``config.use_mean_pooling`` the LayerNorm of the mean over patches, else the CLS token."""

    def __init__(self, config: Data2VecVisionConfig) -> None:
        super().__init__()
        mean = config.use_mean_pooling
        self.layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps) if mean else None

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0] if self.layernorm is None else self.layernorm(x[:, 1:].mean(1))
