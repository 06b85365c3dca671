"""Pretrained encoder <-> the classes that transformers documents: ``model`` makes such a class from
an encoder, ``read`` takes an encoder's weights from a folder of transformers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface.audio import Data2VecAudioModel
from d2v_pretrain.huggingface.config_audio import Data2VecAudioConfig
from d2v_pretrain.huggingface.config_text import Data2VecTextConfig
from d2v_pretrain.huggingface.config_vision import Data2VecVisionConfig
from d2v_pretrain.huggingface.pretrained import PreTrained
from d2v_pretrain.huggingface.text import Data2VecTextModel
from d2v_pretrain.huggingface.vision import Data2VecVisionModel
from d2v_pretrain.huggingface.weight_files import read_weights
from d2v_pretrain.models.block import Block
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.models.positions import ConvPositions, RelativeBias
from d2v_pretrain.models.stems import AudioStem, TextStem, VisionStem
from d2v_pretrain.weights import bundle
from d2v_pretrain.weights.foreign import ForeignWeights


def load(folder: Path) -> tuple[PreTrained, list[str]]:
    """The base model in a folder of transformers: data2vec 1 audio, text or vision, with any head.

    Returns:
        The model in evaluation mode, and the keys of the file that it does not use.

    Raises:
        ConfigError: it is another model, or its weights do not fit its config.json.
    """
    classes: dict[str, tuple[Any, Callable[..., PreTrained]]] = {
        "data2vec-audio": (Data2VecAudioConfig, Data2VecAudioModel),
        "data2vec-text": (Data2VecTextConfig, partial(Data2VecTextModel, add_pooling_layer=False)),
        "data2vec-vision": (Data2VecVisionConfig, Data2VecVisionModel),
    }
    kind = bundle.config(folder)["model_type"]
    if kind not in classes:
        rule, remedy = f"holds a model of type {kind}", f"give one of {', '.join(classes)}"
        raise ConfigError("folder", folder, rule, remedy)
    config_class, model_class = classes[kind]
    model = model_class(config_class.from_pretrained(folder)).eval()
    loading = model.load_file(read_weights(folder), str(folder))
    if any(key.endswith(("masked_spec_embed", "embeddings.mask_token")) for key in loading.missing):
        model.encoder_module.stem.mask_vector = None
    return model, loading.unexpected


def read(folder: Path) -> ForeignWeights:
    """The weights of the encoder in a folder of transformers; see ``load``."""
    model, others = load(folder)
    encoder = model.encoder_module
    stem = encoder.stem
    if isinstance(stem, TextStem) and stem.segment is not None and stem.position is not None:
        # Pretraining has no segments. Row 0, which every token gets, is added to the positions.
        with torch.no_grad():
            stem.position.weight += stem.segment.weight[0]
        stem.segment = None
    tensors = encoder.state_dict()
    return ForeignWeights(
        path=folder,
        what=f"transformers {model.config.model_type}",
        tensors=tensors,
        names={name: name for name in tensors},
        left_out=others,
        heads=_first(encoder).attention.heads,
    )


class NoClass(Exception):
    """transformers has no class for an encoder. The message is a clause that says why."""


def model(encoder: Encoder) -> PreTrained:
    """The base model of transformers' documentation with the weights of ``encoder``.

    Raises:
        NoClass: these models cannot compute what the encoder does.
    """
    makers: dict[type, Callable[[Encoder], PreTrained]] = {
        AudioStem: _audio,
        TextStem: _text,
        VisionStem: _vision,
    }
    if type(encoder.stem) not in makers:
        raise NoClass(f"its stem is a {type(encoder.stem).__name__}")
    made = makers[type(encoder.stem)](encoder)
    theirs, ours = made.encoder_module.state_dict(), encoder.state_dict()
    if odd := sorted((theirs.keys() ^ ours.keys()) - {"stem.segment.weight"}):
        raise NoClass(f"parameters differ: {', '.join(odd[:4])}")
    made.encoder_module.load_state_dict(ours, strict=False)
    return made.eval()


def _first(encoder: Encoder) -> Block:
    block = encoder.blocks[0]
    assert isinstance(block, Block)
    return block


def _require(rules: dict[str, bool]) -> None:
    for reason, wrong in rules.items():
        if wrong:
            raise NoClass(reason)


def _sizes(encoder: Encoder) -> dict[str, Any]:
    """The settings that all three configurations share."""
    block = _first(encoder)
    return {
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": block.attention.heads,
        "intermediate_size": block.fc1.out_features,
        "layer_norm_eps": block.norm1.eps,
    }


def _audio(encoder: Encoder) -> PreTrained:
    stem, positions, block = encoder.stem, encoder.positions, _first(encoder)
    assert isinstance(stem, AudioStem)
    _require(
        {
            "it has an attention bias, ALiBi": encoder.bias is not None,
            "its stem normalises over time": stem.norm_over != "layer",
            "its positions are no convolutions": not isinstance(positions, ConvPositions),
            "its positions have no LayerNorm": not getattr(positions, "layer_norm", True),
            "its positions have weight norm": getattr(positions, "weight_norm", False),
            "its blocks are pre-norm": block.norm_first,
            "it has extra tokens": encoder.extra_tokens > 0,
            "it does not zero the features at padding": not encoder.zero_padding,
        }
    )
    assert isinstance(positions, ConvPositions)
    channels, kernels, strides = zip(*stem.layers, strict=True)
    conv = positions.convs[0]
    assert isinstance(conv, nn.Conv1d)
    # transformers has a mask vector only if it masks.
    masked: dict[str, Any] = {} if stem.mask_vector is not None else {"mask_time_prob": 0.0}
    config = Data2VecAudioConfig(
        **_sizes(encoder),
        **masked,
        conv_dim=channels,
        conv_kernel=kernels,
        conv_stride=strides,
        conv_bias=stem.convs[0].bias is not None,
        num_conv_pos_embeddings=len(positions.convs),
        conv_pos_kernel_size=conv.kernel_size[0],
        num_conv_pos_embedding_groups=conv.groups,
        hidden_dropout=block.dropout,
        attention_dropout=block.attention.dropout,
        activation_dropout=block.activation_dropout,
        layerdrop=encoder.layer_drop,
        padding_invariant=positions.mask_padding,
    )
    return Data2VecAudioModel(config)


def _text(encoder: Encoder) -> PreTrained:
    stem, block = encoder.stem, _first(encoder)
    assert isinstance(stem, TextStem)
    _require(
        {
            "it has no learned positions": stem.position is None,
            "it has positions beside the stem's": encoder.positions is not None,
            "it has an attention bias": encoder.bias is not None,
            "its blocks are pre-norm": block.norm_first,
            "it has extra tokens": encoder.extra_tokens > 0,
        }
    )
    assert stem.position is not None
    config = Data2VecTextConfig(
        **_sizes(encoder),
        vocab_size=stem.token.num_embeddings,
        max_position_embeddings=stem.position.num_embeddings,
        type_vocab_size=1,  # as in the published checkpoint; the row is zero
        hidden_dropout_prob=block.dropout,
        attention_probs_dropout_prob=block.attention.dropout,
    )
    made = Data2VecTextModel(config, add_pooling_layer=False)  # pretraining trains no pooler
    segment = made.encoder.stem.segment
    assert isinstance(segment, nn.Embedding)
    nn.init.zeros_(segment.weight)
    return made


def _vision(encoder: Encoder) -> PreTrained:
    stem, bias, block = encoder.stem, encoder.bias, _first(encoder)
    assert isinstance(stem, VisionStem)
    _require(
        {
            "its attention bias is not relative, as in BEiT": not isinstance(bias, RelativeBias),
            "its positions are added to the patches": encoder.positions is not None,
            "its blocks are post-norm": not block.norm_first,
            "it has not one extra token": encoder.extra_tokens != 1,
        }
    )
    assert isinstance(bias, RelativeBias)
    sides = stem.projection.kernel_size
    config = Data2VecVisionConfig(
        **_sizes(encoder),
        image_size=_square(tuple(n * side for n, side in zip(bias.window, sides, strict=True))),
        patch_size=_square(sides),
        num_channels=stem.projection.in_channels,
        use_mask_token=stem.mask_vector is not None,
        use_shared_relative_position_bias=True,
        # Above 0 stands for: blocks have layer scale. Its values come with the weights.
        layer_scale_init_value=0.0 if block.gamma1 is None else 0.1,
        hidden_dropout_prob=block.dropout,
        attention_probs_dropout_prob=block.attention.dropout,
        drop_path_rate=float(encoder.blocks[-1].drop_path),  # type: ignore[arg-type]
        use_mean_pooling=not isinstance(encoder.final_norm, nn.LayerNorm),
    )
    return Data2VecVisionModel(config)


def _square(sides: tuple[int, ...]) -> int | tuple[int, ...]:
    """One number for a square, because transformers' segmentation takes nothing else."""
    return sides[0] if len(set(sides)) == 1 else sides
