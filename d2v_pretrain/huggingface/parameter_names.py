"""Our parameter names beside those of transformers' Data2Vec models, and the two dialects of the
segmentation head."""

from __future__ import annotations

import re

from d2v_pretrain.weights.keymap import Names, affine, each

RELATIVE_TABLE = "relative_position_bias.relative_position_bias_table"

# Layers of the segmentation head: from the names of transformers 4 to those of transformers 5.
_HEAD = r"^((?:decode|auxiliary)_head\..*)"
OLD_TO_NEW = (
    (r"^(decode_head\.psp_modules)\.(\d+)\.1\.", r"\1.blocks.\2.conv."),
    (r"^(decode_head)\.bottleneck\.", r"\1.psp_bottleneck."),
    (rf"{_HEAD}\.conv\.(\w+)$", r"\1.convolution.\2"),
    (rf"{_HEAD}\.bn\.(\w+)$", r"\1.normalization.\2"),
)
NEW_TO_OLD = (
    (rf"{_HEAD}\.convolution\.(\w+)$", r"\1.conv.\2"),
    (rf"{_HEAD}\.normalization\.(\w+)$", r"\1.bn.\2"),
    (r"^(decode_head\.psp_modules)\.blocks\.(\d+)\.conv\.", r"\1.\2.1."),
    (r"^(decode_head)\.psp_bottleneck\.", r"\1.bottleneck."),
)


def in_dialect(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    """A key of the segmentation model in the other dialect, by ``OLD_TO_NEW`` or ``NEW_TO_OLD``.

    A key that is in that dialect already stays as it is.
    """
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def audio(
    layers: int, bias: bool, masked: bool, positions: int, depth: int, adapter: Names
) -> Names:
    """The names of ``Data2VecAudioModel``.

    Args:
        layers: convolutions of the stem.
        bias: the stem's convolutions have biases.
        masked: the model has a mask vector.
        positions: position convolutions.
        depth: blocks.
        adapter: see ``audio_adapter``; empty without one.
    """

    def convolution(i: int) -> Names:
        ours, theirs = f"encoder.stem.convs.{i}", f"feature_extractor.conv_layers.{i}"
        return {
            f"{ours}.weight": f"{theirs}.conv.weight",
            **({f"{ours}.bias": f"{theirs}.conv.bias"} if bias else {}),
            **affine(f"encoder.stem.norms.{i}", f"{theirs}.layer_norm"),
        }

    def position(i: int) -> Names:
        return affine(f"encoder.positions.convs.{i}", f"encoder.pos_conv_embed.layers.{i}.conv")

    def block(i: int) -> Names:
        ours, theirs = f"encoder.blocks.{i}", f"encoder.layers.{i}"
        return {
            **_qkv(f"{ours}.attention", f"{theirs}.attention", ("q_proj", "k_proj", "v_proj")),
            **affine(f"{ours}.attention.out", f"{theirs}.attention.out_proj"),
            **affine(f"{ours}.norm1", f"{theirs}.layer_norm"),
            **affine(f"{ours}.norm2", f"{theirs}.final_layer_norm"),
            **affine(f"{ours}.fc1", f"{theirs}.feed_forward.intermediate_dense"),
            **affine(f"{ours}.fc2", f"{theirs}.feed_forward.output_dense"),
        }

    return {
        **({"encoder.stem.mask_vector": "masked_spec_embed"} if masked else {}),
        **each(layers, convolution),
        **affine("encoder.stem.norm", "feature_projection.layer_norm"),
        **affine("encoder.stem.projection", "feature_projection.projection"),
        **each(positions, position),
        **affine("encoder.input_norm", "encoder.layer_norm"),
        **each(depth, block),
        **adapter,
    }


def audio_adapter(layers: int, projected: bool) -> Names:
    """The names of the adapter; ``projected`` if it changes the width first."""
    projection = {
        **affine("adapter.projection", "adapter.proj"),
        **affine("adapter.norm", "adapter.proj_layer_norm"),
    }
    convs = each(layers, lambda i: affine(f"adapter.convs.{i}", f"adapter.layers.{i}.conv"))
    return {**(projection if projected else {}), **convs}


def text(depth: int, cross: bool, pooler: bool) -> Names:
    """The names of ``Data2VecTextModel``, which are BERT's.

    Args:
        depth: blocks.
        cross: the blocks also attend to another encoder.
        pooler: the model has one.
    """

    def attention(ours: str, norm: str, theirs: str) -> Names:
        return {
            **_qkv(ours, f"{theirs}.self", ("query", "key", "value")),
            **affine(f"{ours}.out", f"{theirs}.output.dense"),
            **affine(norm, f"{theirs}.output.LayerNorm"),
        }

    def block(i: int) -> Names:
        ours, theirs = f"encoder.blocks.{i}", f"encoder.layer.{i}"
        context = attention(f"{ours}.cross", f"{ours}.cross_norm", f"{theirs}.crossattention")
        return {
            **attention(f"{ours}.attention", f"{ours}.norm1", f"{theirs}.attention"),
            **(context if cross else {}),
            **affine(f"{ours}.fc1", f"{theirs}.intermediate.dense"),
            **affine(f"{ours}.fc2", f"{theirs}.output.dense"),
            **affine(f"{ours}.norm2", f"{theirs}.output.LayerNorm"),
        }

    tables = ("token", "word"), ("position", "position"), ("segment", "token_type")
    return {
        **{f"encoder.stem.{a}.weight": f"embeddings.{b}_embeddings.weight" for a, b in tables},
        **affine("encoder.stem.norm", "embeddings.LayerNorm"),
        **each(depth, block),
        **(affine("pooler", "pooler.dense") if pooler else {}),
    }


def vision(
    depth: int, masked: bool, absolute: bool, shared: bool, per_layer: bool, scaled: bool
) -> Names:
    """The names of embeddings and layers of ``Data2VecVisionModel``.

    Args:
        depth: blocks.
        masked: the model has a mask token.
        absolute: it has absolute positions.
        shared: all blocks have one table of relative positions.
        per_layer: every block has one.
        scaled: blocks have layer scale.
    """

    def block(i: int) -> Names:
        ours, theirs = f"encoder.blocks.{i}", f"encoder.layer.{i}"
        inner = f"{theirs}.attention.attention"
        q, k, v = (f"{inner}.{part}.weight" for part in ("query", "key", "value"))
        return {
            f"{ours}.attention.qkv.weight": (q, k, v),
            f"{ours}.attention.q_bias": f"{inner}.query.bias",
            f"{ours}.attention.v_bias": f"{inner}.value.bias",
            **affine(f"{ours}.attention.out", f"{theirs}.attention.output.dense"),
            **affine(f"{ours}.norm1", f"{theirs}.layernorm_before"),
            **affine(f"{ours}.norm2", f"{theirs}.layernorm_after"),
            **affine(f"{ours}.fc1", f"{theirs}.intermediate.dense"),
            **affine(f"{ours}.fc2", f"{theirs}.output.dense"),
            **({f"{ours}.gamma{n}": f"{theirs}.lambda_{n}" for n in (1, 2)} if scaled else {}),
        }

    tables: Names = {
        f"encoder.layer_biases.{i}.table": f"encoder.layer.{i}.attention.attention.{RELATIVE_TABLE}"
        for i in range(depth)
    }
    return {
        "encoder.extra": "embeddings.cls_token",
        **({"encoder.stem.mask_vector": "embeddings.mask_token"} if masked else {}),
        **({"encoder.positions.table": "embeddings.position_embeddings"} if absolute else {}),
        **affine("encoder.stem.projection", "embeddings.patch_embeddings.projection"),
        **({"encoder.bias.table": f"encoder.{RELATIVE_TABLE}"} if shared else {}),
        **(tables if per_layer else {}),
        **each(depth, block),
    }


def _qkv(ours: str, theirs: str, parts: tuple[str, str, str]) -> Names:
    """Our one layer for queries, keys and values: three layers of theirs."""
    q, k, v = (f"{theirs}.{part}" for part in parts)
    return {f"{ours}.qkv.{p}": (f"{q}.{p}", f"{k}.{p}", f"{v}.{p}") for p in ("weight", "bias")}
