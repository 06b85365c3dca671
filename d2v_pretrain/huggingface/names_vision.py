"""Parameter names of Hugging Face's Data2VecVision models beside ours, and the segmentation head's
two dialects."""

from __future__ import annotations

import re

from d2v_pretrain.weights.keymap import Names, affine, each

TABLE = "relative_position_bias.relative_position_bias_table"

# Layers of the segmentation head: as transformers 4 names them, as transformers 5 does.
HEAD = r"^((?:decode|auxiliary)_head\..*)"
OLD_TO_NEW = (
    (r"^(decode_head\.psp_modules)\.(\d+)\.1\.", r"\1.blocks.\2.conv."),
    (r"^(decode_head)\.bottleneck\.", r"\1.psp_bottleneck."),
    (rf"{HEAD}\.conv\.(\w+)$", r"\1.convolution.\2"),
    (rf"{HEAD}\.bn\.(\w+)$", r"\1.normalization.\2"),
)
NEW_TO_OLD = (
    (rf"{HEAD}\.convolution\.(\w+)$", r"\1.conv.\2"),
    (rf"{HEAD}\.normalization\.(\w+)$", r"\1.bn.\2"),
    (r"^(decode_head\.psp_modules)\.blocks\.(\d+)\.conv\.", r"\1.\2.1."),
    (r"^(decode_head)\.psp_bottleneck\.", r"\1.bottleneck."),
)


def head_name(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    """A key of the segmentation model in the other dialect, by ``OLD_TO_NEW`` or ``NEW_TO_OLD``;
    one that is in it already stays."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def vision_block(ours: str, theirs: str, scaled: bool) -> Names:
    """One layer of the encoder, without a key bias.

    Args:
        ours: prefix.
        theirs: prefix.
        scaled: it has layer scale.
    """
    attention = f"{theirs}.attention.attention"
    pairs = [
        ("attention.out", "attention.output.dense"),
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
    ]
    pairs += [("fc1", "intermediate.dense"), ("fc2", "output.dense")]
    q, k, v = (f"{attention}.{part}.weight" for part in ("query", "key", "value"))
    return {
        f"{ours}.attention.qkv.weight": (q, k, v),
        f"{ours}.attention.q_bias": f"{attention}.query.bias",
        f"{ours}.attention.v_bias": f"{attention}.value.bias",
        **{n: t for a, b in pairs for n, t in affine(f"{ours}.{a}", f"{theirs}.{b}").items()},
        **({f"{ours}.gamma{i}": f"{theirs}.lambda_{i}" for i in (1, 2)} if scaled else {}),
    }


def vision_encoder(
    depth: int, masked: bool, absolute: bool, shared: bool, per_layer: bool, scaled: bool
) -> Names:
    """Embeddings and layers of ``Data2VecVisionModel``.

    Args:
        depth: layers.
        masked: it has a mask token.
        absolute: it has absolute positions.
        shared: all layers have one table of relative positions.
        per_layer: every layer has one.
        scaled: layers have layer scale.
    """
    layer = "encoder.layer.{}"
    tables = {
        f"encoder.layer_biases.{i}.table": f"{layer.format(i)}.attention.attention.{TABLE}"
        for i in range(depth)
    }
    return {
        "encoder.extra": "embeddings.cls_token",
        **({"encoder.stem.mask_vector": "embeddings.mask_token"} if masked else {}),
        **({"encoder.positions.table": "embeddings.position_embeddings"} if absolute else {}),
        **affine("encoder.stem.projection", "embeddings.patch_embeddings.projection"),
        **({"encoder.bias.table": f"encoder.{TABLE}"} if shared else {}),
        **(tables if per_layer else {}),
        **each(depth, lambda i: vision_block(f"encoder.blocks.{i}", layer.format(i), scaled)),
    }
