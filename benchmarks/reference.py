"""The reader of the reference's configurations.

"The reference" is the published data2vec code: fairseq for data2vec 1.0 audio and text and for
data2vec 2.0, BEiT for data2vec 1.0 vision. ``build`` takes a configuration of it, with the
reference's own names of settings, and returns our objective built the same way, together with
tables that translate our parameter names into the reference's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks.settings import Settings, block_of, conv_layers, decay_of, loss_of, targets_of
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.masking import BlockMask, RectangleMask, SpanMask, TokenMask
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.models.positions import Alibi, ConvPositions, RelativeBias, SinCosPositions
from d2v_pretrain.models.stems import AudioStem, TextStem, VisionStem
from d2v_pretrain.objective.data2vec import Data2Vec
from d2v_pretrain.objective.loss import RegressionLoss
from d2v_pretrain.objective.predictors import ConvDecoder, Head
from d2v_pretrain.objective.targets import Targets
from d2v_pretrain.objective.teacher import Teacher
from d2v_pretrain.objective.view import Drop, Replace
from d2v_pretrain.schedules import Constant
from d2v_pretrain.weights import keymap
from d2v_pretrain.weights.keymap import Names

# Settings of the reference with the values that are built here, the reference's default first.
_BUILT: dict[str, tuple[Any, ...]] = {
    "layer_type": ("transformer",),
    "conv_pos_batch_norm": (False,),
    "pos_enc_type": ("abs",),
    "activation_fn": ("gelu",),
    "extractor_mode": ("default", "layer_norm"),
}


@dataclass(frozen=True)
class Reference:
    """A reference model rebuilt from our parts.

    Args:
        objective: our objective, with fresh weights.
        student: the reference's name of every parameter of our student and predictor.
        teacher: the reference's name of every parameter of our teacher's encoder.
        prenet: how many of our first blocks the reference counts as part of the modality's
            encoder (data2vec 2.0) and not of the shared blocks.
    """

    objective: Data2Vec
    student: Names
    teacher: Names
    prenet: int = 0


def build(recipe: str, settings: Settings, extra: Settings) -> Reference:
    """Read a configuration of the reference and build the same model from our parts.

    Args:
        recipe: one of the six names below, such as ``data2vec 1.0 audio``.
        settings: the reference's configuration.
        extra: settings that the reference keeps elsewhere: the size of the vocabulary for text;
            the targets, the loss and the teacher's decay for data2vec 1.0 vision.

    Raises:
        ConfigError: the recipe is not one of the six, or a setting asks for something that is not
            built here.
    """
    builders: dict[str, Callable[[Settings, Settings], Reference]] = {
        "data2vec 1.0 audio": audio1,
        "data2vec 1.0 text": text1,
        "data2vec 1.0 vision": vision1,
        "data2vec 2.0 audio": audio2,
        "data2vec 2.0 image": image2,
        "data2vec 2.0 text": text2,
    }
    if recipe not in builders:
        raise ConfigError("recipe", recipe, f"is none of {', '.join(builders)}")
    for name, built in _BUILT.items():
        if (value := settings.get(name, built[0])) not in built:
            raise ConfigError(name, value, f"is not built here, only {', '.join(map(str, built))}")
    return builders[recipe](settings, extra)


def audio1(s: Settings, extra: Settings) -> Reference:
    """The model that fairseq calls ``data2vec_audio``, also with the extractor, the positions and
    the block layout of wav2vec 2.0, which are fairseq's defaults."""
    width, depth = s["encoder_embed_dim"], s["encoder_layers"]
    layers, ratio = conv_layers(s["conv_feature_layers"]), s["encoder_ffn_embed_dim"] / width
    dropouts = (s["dropout"], s["attention_dropout"], s["activation_dropout"])
    group = s.get("extractor_mode", "default") == "default"
    norm_first, convs = s.get("layer_norm_first", False), s.get("pos_conv_depth", 1)
    norm, bias = "group" if group else "layer", s.get("conv_bias", False)
    block = block_of(width, s["encoder_attention_heads"], ratio, dropouts)
    student = Encoder(
        AudioStem(width, layers, bias, masked=True, norm=norm, mask_padding=False),
        partial(block, norm_first=norm_first),
        width,
        depth,
        positions=ConvPositions(
            width,
            convs,
            s["conv_pos"],
            s["conv_pos_groups"],
            layer_norm=convs > 1,
            weight_norm=convs == 1,
        ),
        input_norm=not norm_first,
        final_norm=norm_first,
        input_dropout=s["dropout"],
        layer_drop=s["encoder_layerdrop"],
        zero_padding=True,
    )
    copied = ("stem", "positions") if s["ema_layers_only"] else ("stem",)
    teacher = partial(Teacher, decay=decay_of(s), copied=copied, reads_student_stem=True)
    policy = SpanMask(s["mask_prob"], s["mask_length"], equal=s["require_same_masks"])
    head, targets = Head(width), targets_of(s)
    objective = Data2Vec(student, teacher, policy, Replace(), head, targets, loss_of(s))
    kinds = (group, bias, convs == 1, norm_first)
    names = keymap.audio1(depth, len(layers), convs, *kinds)
    return Reference(objective, names, _names_below("encoder.", names))


def text1(s: Settings, extra: Settings) -> Reference:
    """The model that fairseq calls ``data2vec_text``. Here the teacher reads the whole sequence, as
    in the paper; fairseq's reads only the masked words (see ``MaskedTokensOnly``)."""
    t, e, vocabulary = s["transformer"], s["transformer"]["encoder"], extra["vocab"]["size"]
    width, depth = e["embed_dim"], e["layers"]
    dropouts = (t["dropout"], t["attention_dropout"], t["activation_dropout"])
    student = Encoder(
        TextStem(width, vocabulary, t["max_source_positions"], t["dropout"]),
        block_of(width, e["attention_heads"], e["ffn_embed_dim"] / width, dropouts),
        width,
        depth,
        input_norm=False,
        layer_drop=e["layerdrop"],
        zero_padding=True,
    )
    teacher = partial(Teacher, decay=decay_of(s), copied=("stem",))
    policy = SpanMask(0.35, 4, fit=False, equal=False)
    head, targets = Head(width, s["head_layers"], init="bert"), targets_of(s)
    objective = Data2Vec(student, teacher, policy, Replace(), head, targets, loss_of(s))
    names = keymap.text1(depth)
    return Reference(objective, names, _names_below("encoder.sentence_encoder.", names))


def vision1(s: Settings, extra: Settings) -> Reference:
    """The model ``data2vec_vision``, which is built on BEiT's code."""
    width, depth, side = s["embed_dim"], s["depth"], s["img_size"] // s["patch_size"]
    dropouts, eps = (0.0, s["attn_drop_rate"], 0.0), extra["norm_eps"]
    block = block_of(width, s["num_heads"], s["mlp_ratio"], dropouts, eps)
    pre_norm = partial(block, norm_first=True, layer_scale=s["init_values"], key_bias=False)
    student = Encoder(
        VisionStem(width, s["patch_size"], s["in_chans"], masked=True, init="trunc"),
        pre_norm,
        width,
        depth,
        bias=RelativeBias(s["num_heads"], (side, side)),
        extra_tokens=1,
        extra_init=0.02,
        input_norm=False,
        final_norm=True,
        drop_path=s["drop_path_rate"],
        norm_eps=eps,
        init="beit",
    )
    teacher = partial(Teacher, decay=Constant(extra["ema_decay_used"]))
    policy, head = RectangleMask(int(0.6125 * side * side)), Head(width, init="beit")
    tensor = "block" if extra["layer_results"] == "end" else "ffn"
    each = ("layer",) if extra["target_layer_norm_each"] else ()
    after = ("layer",) if extra["post_target_layer_norm"] else ()
    targets = Targets(len(extra["target_layers"]), tensor, each, after)
    loss = RegressionLoss(extra["l1_beta"], "dim")
    objective = Data2Vec(student, teacher, policy, Replace(), head, targets, loss)
    names = keymap.vision1(depth)
    # The reference's teacher has an averaged copy of the head too, which nothing reads.
    return Reference(objective, names, keymap.teacher_names(names, lambda n: n))


def audio2(s: Settings, extra: Settings) -> Reference:
    """The model that fairseq calls ``data2vec_multi``, with ``modalities.audio``."""
    m, width = s["modalities"]["audio"], s["embed_dim"]
    layers, conv = conv_layers(m["feature_encoder_spec"]), m["conv_pos_depth"]
    stem = AudioStem(width, layers)
    parts = {
        "positions": ConvPositions(width, conv, m["conv_pos_width"], m["conv_pos_groups"]),
        "bias": Alibi(s["num_heads"]),
        "input_dropout": m["prenet_dropout"],
    }
    teacher = partial(Teacher, decay=decay_of(s), copied=("stem",), reads_student_stem=True)
    names = keymap.audio2_stem(len(layers), conv)
    return _data2vec2(s, m, stem, parts, teacher, _blocks(m), names, "AUDIO")


def image2(s: Settings, extra: Settings) -> Reference:
    """The model that fairseq calls ``data2vec_multi``, with ``modalities.image``."""
    m, width = s["modalities"]["image"], s["embed_dim"]
    stem = VisionStem(width, m["patch_size"], m["in_chans"])
    parts = {"positions": SinCosPositions(width), "extra_tokens": m["num_extra_tokens"]}
    teacher, names = partial(Teacher, decay=decay_of(s)), keymap.image2_stem()
    return _data2vec2(s, m, stem, parts, teacher, _blocks(m), names, "IMAGE", dims=2)


def text2(s: Settings, extra: Settings) -> Reference:
    """The model that fairseq calls ``data2vec_multi``, with ``modalities.text``. Its teacher has
    blocks only and reads the student's embeddings."""
    m, width = s["modalities"]["text"], s["embed_dim"]
    stem = TextStem(width, extra["vocab"]["size"], m["max_source_positions"], m["dropout"])
    parts, policy, names = {"input_norm": False}, TokenMask(m["mask_prob"]), keymap.text2_stem()
    teacher = partial(Teacher, decay=decay_of(s), copied=("stem",), reads_student_stem=True)
    built = _data2vec2(s, m, stem, parts, teacher, policy, names, "TEXT", init="bert")
    # The reference's teacher is a bare list of blocks: names in it begin with a block's index.
    return replace(built, teacher=_names_below("blocks.", built.student))


def _blocks(m: Settings) -> BlockMask:
    return BlockMask(m["mask_prob"], m["mask_length"], m["mask_prob_adjust"], m["inverse_mask"])


def _data2vec2(
    s: Settings,
    m: Settings,
    stem: Any,
    parts: Settings,
    teacher: Any,
    policy: Any,
    names: Names,
    section: str,
    **decoder: Any,
) -> Reference:
    """Build what the three modalities of data2vec 2.0 have in common.

    Args:
        m: the part of the configuration ``s`` that is about this modality.
        parts: arguments of ``Encoder`` that differ between modalities.
        teacher: makes the teacher from the student.
        names: the reference's names of the parameters of stem and positions.
        section: the modality's name inside the reference's parameter names.
        decoder: arguments of ``ConvDecoder`` that differ between modalities.
    """
    width, d, eps = s["embed_dim"], m["decoder"], s["norm_eps"]
    if s.get("layer_norm_first"):
        rule = "is not built here: the reference's pre-norm blocks of data2vec 2 lack a residual"
        raise ConfigError("layer_norm_first", True, rule)
    dropouts = (s["encoder_dropout"], s["attention_dropout"], s["activation_dropout"])
    block = block_of(width, s["num_heads"], s["mlp_ratio"], dropouts, eps)
    depth, drop = s["depth"] + m["prenet_depth"], s["layerdrop"]
    student = Encoder(stem, block, width, depth, layer_drop=drop, norm_eps=eps, **parts)
    layers = d.get("projection_layers", 1)
    predictor = ConvDecoder(
        width,
        d["decoder_dim"],
        d["decoder_kernel"],
        d["decoder_layers"],
        d["decoder_groups"],
        residual=d.get("decoder_residual", True),
        input_dropout=d["input_dropout"],
        noise_std=m["mask_noise_std"],
        projection_layers=layers,
        projection_ratio=d.get("projection_ratio", 2.0),
        mask_padding=False,
        **decoder,
    )
    targets, clones = targets_of(s), s["clone_batch"]
    view, loss, cls = Drop(), loss_of(s), s.get("cls_loss", 0.0)
    objective = Data2Vec(student, teacher, policy, view, predictor, targets, loss, clones, cls)
    projections = ("",) if layers == 1 else (".0", ".2")
    names |= keymap.data2vec2(section, depth, m["prenet_depth"], d["decoder_layers"], projections)
    return Reference(objective, names, keymap.teacher_names(names, _full_name), m["prenet_depth"])


def _full_name(name: str) -> str | None:
    """Name of a parameter in the reference's audio or image teacher: the same as in the student;
    None if the teacher has no such parameter and uses the student's."""
    shared = ("AUDIO.local_encoder", "AUDIO.project_features")
    return None if name.removeprefix("modality_encoders.").startswith(shared) else name


def _names_below(prefix: str, names: Names) -> Names:
    """Names in a teacher that is only the part of the reference's student under ``prefix``."""
    return keymap.teacher_names(
        names, lambda name: name.removeprefix(prefix) if name.startswith(prefix) else None
    )
