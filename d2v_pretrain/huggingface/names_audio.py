"""Parameter names of Hugging Face's Data2VecAudio models beside ours."""

from __future__ import annotations

from d2v_pretrain.weights.keymap import Names, affine, each


def audio_block(ours: str, theirs: str) -> Names:
    """One layer of the encoder."""
    qkv: Names = {
        f"{ours}.attention.qkv.{p}": (
            f"{theirs}.attention.q_proj.{p}",
            f"{theirs}.attention.k_proj.{p}",
            f"{theirs}.attention.v_proj.{p}",
        )
        for p in ("weight", "bias")
    }
    pairs = {
        "attention.out": "attention.out_proj",
        "norm1": "layer_norm",
        "norm2": "final_layer_norm",
    }
    pairs |= {"fc1": "feed_forward.intermediate_dense", "fc2": "feed_forward.output_dense"}
    return qkv | {
        k: v for a, b in pairs.items() for k, v in affine(f"{ours}.{a}", f"{theirs}.{b}").items()
    }


def audio_stem(layers: int, bias: bool, masked: bool) -> Names:
    """Feature extractor and projection.

    Args:
        layers: convolutions.
        bias: they have one.
        masked: the model has a mask vector.
    """

    def layer(i: int) -> Names:
        ours, theirs = f"encoder.stem.convs.{i}", f"feature_extractor.conv_layers.{i}"
        conv: Names = {f"{ours}.bias": f"{theirs}.conv.bias"} if bias else {}
        norm = affine(f"encoder.stem.norms.{i}", f"{theirs}.layer_norm")
        return {f"{ours}.weight": f"{theirs}.conv.weight"} | conv | norm

    mask: Names = {"encoder.stem.mask_vector": "masked_spec_embed"} if masked else {}
    projection = affine("encoder.stem.projection", "feature_projection.projection")
    return (
        mask
        | each(layers, layer)
        | affine("encoder.stem.norm", "feature_projection.layer_norm")
        | projection
    )


def audio_encoder(positions: int, depth: int) -> Names:
    """Position convolutions and blocks."""
    return {
        **each(
            positions,
            lambda i: affine(
                f"encoder.positions.convs.{i}", f"encoder.pos_conv_embed.layers.{i}.conv"
            ),
        ),
        **affine("encoder.input_norm", "encoder.layer_norm"),
        **each(depth, lambda i: audio_block(f"encoder.blocks.{i}", f"encoder.layers.{i}")),
    }


def audio_adapter(layers: int, projected: bool) -> Names:
    """The adapter; ``projected`` if it changes the width first."""
    first = affine("adapter.projection", "adapter.proj") | affine(
        "adapter.norm", "adapter.proj_layer_norm"
    )
    convs = each(layers, lambda i: affine(f"adapter.convs.{i}", f"adapter.layers.{i}.conv"))
    return (first if projected else {}) | convs
