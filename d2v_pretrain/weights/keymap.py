"""Our parameter names beside those of fairseq and BEiT, one table for each architecture.

A table maps our name to one name of theirs, or to three (q, k and v) whose tensors, concatenated,
are ours. Tables are used in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Names = dict[str, str | tuple[str, str, str]]


def from_reference(
    state: Mapping[str, Tensor], names: Names, like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Our state from theirs. Axes of length one are added or removed to get the shapes of ``like``.

    Raises:
        KeyError: a name is missing in ``state``.
    """
    ours = {}
    for name, theirs in names.items():
        tensor = (
            state[theirs]
            if isinstance(theirs, str)
            else torch.cat([state[part] for part in theirs])
        )
        ours[name] = tensor.reshape(like[name].shape)
    return ours


def to_reference(
    state: Mapping[str, Tensor], names: Names, shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """Their state from ours, in their ``shapes``. Names that ``state`` lacks are left out."""
    theirs: dict[str, Tensor] = {}
    for name, target in names.items():
        if name not in state:
            continue
        parts = (
            [(target, state[name])]
            if isinstance(target, str)
            else zip(target, state[name].chunk(3), strict=True)
        )
        theirs |= {part: tensor.reshape(shapes.get(part, tensor.shape)) for part, tensor in parts}
    return theirs


def affine(ours: str, theirs: str) -> Names:
    """Weight and bias of one layer."""
    return {f"{ours}.{p}": f"{theirs}.{p}" for p in ("weight", "bias")}


def each(count: int, table: Callable[[int], Names]) -> Names:
    """The union of ``table(0) ... table(count - 1)``."""
    return {ours: theirs for i in range(count) for ours, theirs in table(i).items()}


def fairseq_block(ours: str, theirs: str) -> Names:
    """A block of data2vec 1 audio or text (``TransformerSentenceEncoderLayer``)."""
    qkv: Names = {
        f"{ours}.attention.qkv.{p}": (
            f"{theirs}.self_attn.q_proj.{p}",
            f"{theirs}.self_attn.k_proj.{p}",
            f"{theirs}.self_attn.v_proj.{p}",
        )
        for p in ("weight", "bias")
    }
    names = (
        ("attention.out", "self_attn.out_proj"),
        ("norm1", "self_attn_layer_norm"),
        ("norm2", "final_layer_norm"),
    )
    rest = [
        affine(f"{ours}.{a}", f"{theirs}.{b}") for a, b in (*names, ("fc1", "fc1"), ("fc2", "fc2"))
    ]
    return qkv | {k: v for table in rest for k, v in table.items()}


def vit_block(ours: str, theirs: str) -> Names:
    """A block of data2vec 2 (``AltBlock``)."""
    pairs = (
        ("attention.qkv", "attn.qkv"),
        ("attention.out", "attn.proj"),
        ("norm1", "norm1"),
        ("norm2", "norm2"),
    )
    tables = [
        affine(f"{ours}.{a}", f"{theirs}.{b}")
        for a, b in (*pairs, ("fc1", "mlp.fc1"), ("fc2", "mlp.fc2"))
    ]
    return {k: v for table in tables for k, v in table.items()}


def beit_block(ours: str, theirs: str) -> Names:
    """A block of data2vec 1 vision (BEiT): no key bias, layer scale."""
    single = (
        ("attention.q_bias", "attn.q_bias"),
        ("attention.v_bias", "attn.v_bias"),
        ("gamma1", "gamma_1"),
        ("gamma2", "gamma_2"),
    )
    names = vit_block(ours, theirs) | {f"{ours}.{a}": f"{theirs}.{b}" for a, b in single}
    del names[f"{ours}.attention.qkv.bias"]
    return names


def conv_stem(
    ours: str, theirs: str, layers: int, group_norm: bool = False, conv_bias: bool = False
) -> Names:
    """The convolutions of the audio stem. Theirs have the LayerNorm between two transposes; with
    ``group_norm`` the first layer alone has a norm, and no transposes."""
    kinds = ("weight", "bias") if conv_bias else ("weight",)

    def layer(i: int) -> Names:
        conv: Names = {f"{ours}.convs.{i}.{k}": f"{theirs}.{i}.0.{k}" for k in kinds}
        return conv if group_norm else conv | affine(f"{ours}.norms.{i}", f"{theirs}.{i}.2.1")

    first = affine(f"{ours}.norms.0", f"{theirs}.0.2") if group_norm else {}
    return each(layers, layer) | first


def conv_positions(ours: str, theirs: str, layers: int, weight_norm: bool) -> Names:
    """The convolutions of the positions. With ``weight_norm`` there is one, whose weight is a
    length of each step (``weight_g``) and a direction (``weight_v``)."""
    if not weight_norm:
        return each(layers, lambda i: affine(f"{ours}.{i}", f"{theirs}.{i}.0"))
    parts = {"parametrizations.weight.original0": "weight_g", "bias": "bias"}
    parts |= {"parametrizations.weight.original1": "weight_v"}
    return {f"{ours}.0.{a}": f"{theirs}.0.{b}" for a, b in parts.items()}


def audio1(
    depth: int,
    stem_layers: int,
    position_layers: int,
    group_norm: bool = False,
    conv_bias: bool = False,
    weight_norm: bool = False,
    norm_first: bool = False,
) -> Names:
    """data2vec 1 audio (``data2vec_audio``), and the encoder of wav2vec 2.0.

    Args:
        depth: number of blocks.
        stem_layers, group_norm, conv_bias: see ``conv_stem``.
        position_layers, weight_norm: see ``conv_positions``.
        norm_first: blocks are pre-norm. fairseq's ``encoder.layer_norm`` then stands behind them,
            and otherwise before them.
    """
    encoder = "student.blocks.{}", "encoder.layers.{}"
    stem = stem_layers, group_norm, conv_bias
    return {
        "student.stem.mask_vector": "mask_emb",
        **conv_stem("student.stem", "feature_extractor.conv_layers", *stem),
        **affine("student.stem.norm", "layer_norm"),
        **affine("student.stem.projection", "post_extract_proj"),
        **conv_positions(
            "student.positions.convs", "encoder.pos_conv", position_layers, weight_norm
        ),
        **affine(f"student.{'final' if norm_first else 'input'}_norm", "encoder.layer_norm"),
        **each(depth, lambda i: fairseq_block(encoder[0].format(i), encoder[1].format(i))),
        **affine("predictor.projection.0", "final_proj"),
    }


def text1(depth: int) -> Names:
    """data2vec 1 text (``data2vec_text``), with a head of two layers."""
    prefix = "encoder.sentence_encoder"
    return {
        "student.stem.token.weight": f"{prefix}.embed_tokens.weight",
        "student.stem.position.weight": f"{prefix}.embed_positions.weight",
        **affine("student.stem.norm", f"{prefix}.layernorm_embedding"),
        **each(depth, lambda i: fairseq_block(f"student.blocks.{i}", f"{prefix}.layers.{i}")),
        **affine("predictor.projection.0", "encoder.regression_head.0"),
        **affine("predictor.projection.2", "encoder.regression_head.2"),
    }


def vision1(depth: int) -> Names:
    """data2vec 1 vision (``data2vec_vision``, BEiT)."""
    return {
        "student.extra": "cls_token",
        "student.stem.mask_vector": "mask_token",
        **affine("student.stem.projection", "patch_embed.proj"),
        "student.bias.table": "rel_pos_bias.relative_position_bias_table",
        **each(depth, lambda i: beit_block(f"student.blocks.{i}", f"blocks.{i}")),
        **affine("student.final_norm", "norm"),
        **affine("predictor.projection.0", "lm_head"),
    }


def data2vec2(
    modality: str, depth: int, prenet: int, decoder_layers: int, projections: tuple[str, ...]
) -> Names:
    """What the three models of data2vec 2 share (``data2vec_multi``): blocks and decoder.

    Args:
        modality: AUDIO, IMAGE or TEXT.
        depth: number of all blocks.
        prenet: how many of the first blocks fairseq holds in its part for the modality.
        decoder_layers: convolutions of the decoder.
        projections: names of the decoder's linear layers below ``decoder.proj``.
    """
    prefix = f"modality_encoders.{modality}"
    ours = ("predictor.projection.0", "predictor.projection.2")
    final = zip(ours[: len(projections)], projections, strict=True)
    return {
        **each(
            prenet,
            lambda i: vit_block(f"student.blocks.{i}", f"{prefix}.context_encoder.blocks.{i}"),
        ),
        **each(depth - prenet, lambda i: vit_block(f"student.blocks.{i + prenet}", f"blocks.{i}")),
        **each(
            decoder_layers,
            lambda i: affine(f"predictor.convs.{i}", f"{prefix}.decoder.blocks.{i}.0"),
        ),
        **{k: v for a, b in final for k, v in affine(a, f"{prefix}.decoder.proj{b}").items()},
    }


def audio2_stem(stem_layers: int, position_layers: int) -> Names:
    """The parts of data2vec 2 audio below its blocks."""
    prefix = "modality_encoders.AUDIO"
    return {
        **conv_stem("student.stem", f"{prefix}.local_encoder.conv_layers", stem_layers),
        **affine("student.stem.norm", f"{prefix}.project_features.1"),
        **affine("student.stem.projection", f"{prefix}.project_features.2"),
        **each(
            position_layers,
            lambda i: affine(
                f"student.positions.convs.{i}", f"{prefix}.relative_positional_encoder.{i + 1}.0"
            ),
        ),
        "student.bias.scale": f"{prefix}.alibi_scale",
        **affine("student.input_norm", f"{prefix}.context_encoder.norm"),
    }


def image2_stem() -> Names:
    """The parts of data2vec 2 image below its blocks."""
    prefix = "modality_encoders.IMAGE"
    return {
        "student.extra": f"{prefix}.extra_tokens",
        **affine("student.stem.projection", f"{prefix}.local_encoder.proj"),
        **affine("student.input_norm", f"{prefix}.context_encoder.norm"),
    }


def text2_stem() -> Names:
    """The parts of data2vec 2 text below its blocks."""
    prefix = "modality_encoders.TEXT.local_encoder"
    return {
        "student.stem.token.weight": f"{prefix}.embed_tokens.weight",
        "student.stem.position.weight": f"{prefix}.embed_positions.weight",
        **affine("student.stem.norm", f"{prefix}.layernorm_embedding"),
    }


def teacher_names(student: Names, rename: Callable[[str], str | None]) -> Names:
    """The teacher's table from the student's: the encoder's parameters, without our prefix.

    Args:
        student: the table of the student.
        rename: student's name of theirs -> teacher's; None leaves a parameter out.
    """
    table: Names = {}
    for ours, theirs in student.items():
        parts = (theirs,) if isinstance(theirs, str) else theirs
        renamed = [rename(part) for part in parts]
        if ours.startswith("student.") and None not in renamed:
            key = ours.removeprefix("student.")
            table[key] = renamed[0] if isinstance(theirs, str) else tuple(renamed)  # type: ignore[assignment]
    return table
