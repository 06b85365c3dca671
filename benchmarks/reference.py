"""The reference's settings, under its own names -> our objective and its parameter names."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from d2v_pretrain.masking import BlockMask, RectangleMask, SpanMask, TokenMask
from d2v_pretrain.models.block import Block
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.models.positions import Alibi, ConvPositions, RelativeBias, SinCosPositions
from d2v_pretrain.models.stems import AudioStem, TextStem, VisionStem
from d2v_pretrain.objective.data2vec import Data2Vec
from d2v_pretrain.objective.loss import RegressionLoss
from d2v_pretrain.objective.predictors import ConvDecoder, Head
from d2v_pretrain.objective.targets import Targets
from d2v_pretrain.objective.teacher import Teacher
from d2v_pretrain.objective.view import Drop, Replace
from d2v_pretrain.schedules import Constant, Linear
from d2v_pretrain.weights import keymap
from d2v_pretrain.weights.keymap import Names

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Reference:
    """One reference model, rebuilt.

    Args:
        objective: ours, with fresh weights.
        student: our names -> the reference's, for student and predictor.
        teacher: our encoder names -> the reference's teacher names.
        prenet: number of first blocks that the reference keeps with the modality.
    """

    objective: Data2Vec
    student: Names
    teacher: Names
    prenet: int = 0


def build(recipe: str, settings: Settings, extra: Settings) -> Reference:
    """Rebuild a reference model.

    Args:
        recipe: ``data2vec 1.0 audio`` and the like.
        settings: the reference's configuration.
        extra: what the reference keeps outside it (vocabulary; vision's targets).

    Raises:
        KeyError: the recipe is not one of the six.
    """
    builders: dict[str, Callable[[Settings, Settings], Reference]] = {
        "data2vec 1.0 audio": audio1,
        "data2vec 1.0 text": text1,
        "data2vec 1.0 vision": vision1,
        "data2vec 2.0 audio": audio2,
        "data2vec 2.0 image": image2,
        "data2vec 2.0 text": text2,
    }
    return builders[recipe](settings, extra)


def conv_layers(spec: str) -> list[tuple[int, int, int]]:
    """``"[(512, 10, 5)] + [(512, 3, 2)] * 4"`` as a list, without evaluating code."""
    layers: list[tuple[int, int, int]] = []
    for part, times in re.findall(r"(\[[^\]]*\])\s*(?:\*\s*(\d+))?", spec):
        layers += ast.literal_eval(part) * int(times or 1)
    return layers


def audio1(s: Settings, extra: Settings) -> Reference:
    """fairseq ``data2vec_audio``."""
    width, depth, stem = (
        s["encoder_embed_dim"],
        s["encoder_layers"],
        conv_layers(s["conv_feature_layers"]),
    )
    ratio = s["encoder_ffn_embed_dim"] / width
    dropouts = (s["dropout"], s["attention_dropout"], s["activation_dropout"])
    student = Encoder(
        AudioStem(width, stem, s["conv_bias"], masked=True),
        _block(width, s["encoder_attention_heads"], ratio, *dropouts),
        width,
        depth,
        positions=ConvPositions(width, s["pos_conv_depth"], s["conv_pos"], s["conv_pos_groups"]),
        input_dropout=s["dropout"],
        layer_drop=s["encoder_layerdrop"],
        zero_padding=True,
    )
    copied = ("stem", "positions") if s["ema_layers_only"] else ("stem",)
    objective = Data2Vec(
        student,
        partial(Teacher, decay=_decay(s), copied=copied, reads_student_stem=True),
        SpanMask(s["mask_prob"], s["mask_length"], equal=s["require_same_masks"]),
        Replace(),
        Head(width),
        _targets(s, s["average_top_k_layers"]),
        _loss(s),
    )
    names = keymap.audio1(depth, len(stem), s["pos_conv_depth"])
    teacher = keymap.teacher_names(
        names, lambda n: n.removeprefix("encoder.") if n.startswith("encoder.") else None
    )
    return Reference(objective, names, teacher)


def text1(s: Settings, extra: Settings) -> Reference:
    """fairseq ``data2vec_text``; its teacher gets the whole sequence, as in the paper (see
    ``MaskedTokensOnly``)."""
    t, e, vocabulary = s["transformer"], s["transformer"]["encoder"], extra["vocab"]["size"]
    width, depth = e["embed_dim"], e["layers"]
    dropouts = (t["dropout"], t["attention_dropout"], t["activation_dropout"])
    student = Encoder(
        TextStem(width, vocabulary, t["max_source_positions"], t["dropout"]),
        _block(width, e["attention_heads"], e["ffn_embed_dim"] / width, *dropouts),
        width,
        depth,
        input_norm=False,
        layer_drop=e["layerdrop"],
        zero_padding=True,
    )
    objective = Data2Vec(
        student,
        partial(Teacher, decay=_decay(s), copied=("stem",)),
        SpanMask(0.35, 4, fit=False, equal=False),
        Replace(),
        Head(width, s["head_layers"], init="bert"),
        _targets(s, s["average_top_k_layers"]),
        _loss(s),
    )
    names, prefix = keymap.text1(depth), "encoder.sentence_encoder."
    return Reference(
        objective, names, keymap.teacher_names(names, lambda n: n.removeprefix(prefix))
    )


def vision1(s: Settings, extra: Settings) -> Reference:
    """BEiT-based ``data2vec_vision``."""
    width, depth, side = s["embed_dim"], s["depth"], s["img_size"] // s["patch_size"]
    block = partial(
        _block(
            width, s["num_heads"], s["mlp_ratio"], 0.0, s["attn_drop_rate"], 0.0, extra["norm_eps"]
        ),
        norm_first=True,
        layer_scale=s["init_values"],
        key_bias=False,
    )
    student = Encoder(
        VisionStem(width, s["patch_size"], s["in_chans"], masked=True, init="trunc"),
        block,
        width,
        depth,
        bias=RelativeBias(s["num_heads"], (side, side)),
        extra_tokens=1,
        extra_init=0.02,
        input_norm=False,
        final_norm=True,
        drop_path=s["drop_path_rate"],
        norm_eps=extra["norm_eps"],
        init="beit",
    )
    objective = Data2Vec(
        student,
        partial(Teacher, decay=Constant(extra["ema_decay_used"])),
        RectangleMask(int(0.6125 * side * side)),
        Replace(),
        Head(width, init="beit"),
        Targets(
            len(extra["target_layers"]),
            "block" if extra["layer_results"] == "end" else "ffn",
            ("layer",) if extra["target_layer_norm_each"] else (),
            ("layer",) if extra["post_target_layer_norm"] else (),
        ),
        RegressionLoss(extra["l1_beta"], "dim"),
    )
    names = keymap.vision1(depth)
    # The reference averages its head too; nothing reads the averaged copy.
    return Reference(objective, names, keymap.teacher_names(names, lambda n: n))


def audio2(s: Settings, extra: Settings) -> Reference:
    """fairseq ``data2vec_multi`` with ``modalities.audio``."""
    m, width, stem = (
        s["modalities"]["audio"],
        s["embed_dim"],
        conv_layers(s["modalities"]["audio"]["feature_encoder_spec"]),
    )
    student = _encoder2(
        s,
        m,
        AudioStem(width, stem),
        positions=ConvPositions(
            width, m["conv_pos_depth"], m["conv_pos_width"], m["conv_pos_groups"]
        ),
        bias=Alibi(s["num_heads"]),
        input_dropout=m["prenet_dropout"],
    )
    policy = BlockMask(m["mask_prob"], m["mask_length"], m["mask_prob_adjust"], m["inverse_mask"])
    teacher = partial(Teacher, decay=_decay(s), copied=("stem",), reads_student_stem=True)
    names = keymap.audio2_stem(len(stem), m["conv_pos_depth"])
    return _data2vec2(s, m, student, teacher, policy, names, "AUDIO")


def image2(s: Settings, extra: Settings) -> Reference:
    """fairseq ``data2vec_multi`` with ``modalities.image``."""
    m, width = s["modalities"]["image"], s["embed_dim"]
    stem = VisionStem(width, m["patch_size"], m["in_chans"])
    tokens = m["num_extra_tokens"]
    student = _encoder2(s, m, stem, positions=SinCosPositions(width), extra_tokens=tokens)
    policy = BlockMask(m["mask_prob"], m["mask_length"], m["mask_prob_adjust"], m["inverse_mask"])
    teacher = partial(Teacher, decay=_decay(s))
    return _data2vec2(s, m, student, teacher, policy, keymap.image2_stem(), "IMAGE", dims=2)


def text2(s: Settings, extra: Settings) -> Reference:
    """fairseq ``data2vec_multi`` with ``modalities.text``; the teacher holds blocks only and reads
    the student's embeddings."""
    m, width = s["modalities"]["text"], s["embed_dim"]
    stem = TextStem(width, extra["vocab"]["size"], m["max_source_positions"], m["dropout"])
    student = _encoder2(s, m, stem, input_norm=False)
    teacher = partial(Teacher, decay=_decay(s), copied=("stem",), reads_student_stem=True)
    built = _data2vec2(
        s, m, student, teacher, TokenMask(m["mask_prob"]), keymap.text2_stem(), "TEXT", init="bert"
    )
    # The reference's teacher is the list of blocks, named from their index.
    blocks = keymap.teacher_names(
        built.student, lambda n: n.removeprefix("blocks.") if n.startswith("blocks.") else None
    )
    return replace(built, teacher=blocks)


def _encoder2(s: Settings, m: Settings, stem: Any, **parts: Any) -> Encoder:
    dropouts = (s["encoder_dropout"], s["attention_dropout"], s["activation_dropout"])
    block = _block(s["embed_dim"], s["num_heads"], s["mlp_ratio"], *dropouts, s["norm_eps"])
    depth = s["depth"] + m["prenet_depth"]
    return Encoder(
        stem,
        block,
        s["embed_dim"],
        depth,
        layer_drop=s["layerdrop"],
        norm_eps=s["norm_eps"],
        **parts,
    )


def _data2vec2(
    s: Settings,
    m: Settings,
    student: Encoder,
    teacher: Any,
    policy: Any,
    names: Names,
    section: str,
    **decoder: Any,
) -> Reference:
    """What the three share; ``section`` is the modality's name in parameter names."""
    d = m["decoder"]
    layers = d.get("projection_layers", 1)
    predictor = ConvDecoder(
        s["embed_dim"],
        d["decoder_dim"],
        d["decoder_kernel"],
        d["decoder_layers"],
        d["decoder_groups"],
        residual=d.get("decoder_residual", True),
        input_dropout=d["input_dropout"],
        noise_std=m["mask_noise_std"],
        projection_layers=layers,
        projection_ratio=d.get("projection_ratio", 2.0),
        **decoder,
    )
    targets, clones, cls = (
        _targets(s, s["average_top_k_layers"]),
        s["clone_batch"],
        s.get("cls_loss", 0.0),
    )
    objective = Data2Vec(
        student, teacher, policy, Drop(), predictor, targets, _loss(s), clones, cls
    )
    projections = ("",) if layers == 1 else (".0", ".2")
    names |= keymap.data2vec2(
        section, student.depth, m["prenet_depth"], d["decoder_layers"], projections
    )
    return Reference(objective, names, keymap.teacher_names(names, _full_name), m["prenet_depth"])


def _full_name(name: str) -> str | None:
    """The reference's audio and image teachers keep full names, without what they share with the
    student."""
    shared = ("AUDIO.local_encoder", "AUDIO.project_features")
    return None if name.removeprefix("modality_encoders.").startswith(shared) else name


def _block(
    width: int,
    heads: int,
    ratio: float,
    dropout: float,
    attention: float,
    activation: float,
    eps: float = 1e-5,
) -> Callable[..., Block]:
    return partial(
        Block,
        width,
        heads,
        ratio,
        dropout=dropout,
        attention_dropout=attention,
        activation_dropout=activation,
        norm_eps=eps,
    )


def _decay(s: Settings) -> Linear:
    return Linear(s["ema_decay"], s["ema_end_decay"], s["ema_anneal_end_step"])


def _loss(s: Settings) -> RegressionLoss:
    scale = s.get("loss_scale")
    return RegressionLoss(
        s.get("loss_beta", 0.0), "sqrt_dim" if scale is None or scale <= 0 else scale
    )


def _targets(s: Settings, top_k: int) -> Targets:
    layer = {"batch": "batch_norm_target_layer", "instance": "instance_norm_target_layer"}
    layer |= {"group": "group_norm_target_layer", "layer": "layer_norm_target_layer"}
    mean = {"layer": "layer_norm_targets", "instance": "instance_norm_targets"}
    tensor = "block" if s.get("end_of_block_targets") else "ffn"
    norms = [tuple(name for name, key in table.items() if s.get(key)) for table in (layer, mean)]
    return Targets(top_k, tensor, norms[0], norms[1], count_padding=True)
