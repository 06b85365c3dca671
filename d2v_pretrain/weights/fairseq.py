"""Read an encoder's weights from a checkpoint of fairseq or BEiT: data2vec 1 and 2 and wav2vec 2.0,
pretrained and fine-tuned, with old names of parameters too."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.weights import keymap, pickles
from d2v_pretrain.weights.foreign import ForeignWeights
from d2v_pretrain.weights.keymap import Names

State = Mapping[str, Tensor]

# A fine-tuned model holds the pretrained one under one of these prefixes. All its other tensors are
# those of heads.
_PREFIXES = ("w2v_encoder.w2v_model.", "encoder.w2v_model.", "w2v_model.", "model.", "module.")
# Old names -> today's. The rules are applied in this order.
_RENAMED = (
    (r"^decoder\.sentence_encoder\.", "encoder.sentence_encoder."),
    (r"^(encoder\.sentence_encoder\.)emb_layer_norm\.", r"\1layernorm_embedding."),
    (r"^(encoder\.pos_conv\.0\.)parametrizations\.weight\.original0$", r"\1weight_g"),
    (r"^(encoder\.pos_conv\.0\.)parametrizations\.weight\.original1$", r"\1weight_v"),
)
# The same for files with ``patch_embed.conv``. Source: fairseq's fb_convert_beit_cp.py.
_RENAMED_BEIT = (
    (r"^encoder\.", ""),
    (r"^cls_emb$", "cls_token"),
    (r"^mask_emb$", "mask_token"),
    (r"^patch_embed\.conv\.", "patch_embed.proj."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.2\.", ".mlp.fc2."),
    (r"^final_proj\.", "lm_head."),
)
# Keys that do not belong to an encoder: heads, decoders, the teacher, fixed tables, counters.
_HEADS = re.compile(
    r"(.*\.)?_ema(\..*)?$|(.*\.)?version$|final_proj\.|(encoder\.)?(regression_head|lm_head)\.|classification_heads\."
    r"|fc_norm\.|head\.|proj\.|modality_encoders\.\w+\.decoder\.|.*relative_position_index$"
    r"|modality_encoders\.\w+\.(fixed_)?positional_encoder\.|quantizer\.|project_q\.|label_embs_concat$"
)
_HEAD_COUNTS = ("encoder_attention_heads", "num_heads", "attention_heads")


def read(path: Path) -> ForeignWeights:
    """Read a checkpoint of the published code without that code.

    The student's weights are read (``model``), as in the published fine-tuning. The teacher in the
    file is left out.

    Raises:
        ConfigError: the file is damaged, would run code, or holds no model that is known here.
    """
    content = pickles.read(path)
    model = _model(content, path)
    below = next(
        (prefix for prefix in _PREFIXES if any(name.startswith(prefix) for name in model)), ""
    )
    state = {
        name.removeprefix(below): value for name, value in model.items() if name.startswith(below)
    }
    beside = {name.rpartition(".")[0] or name for name in model if not name.startswith(below)}
    state = _with_usual_names(state)
    what, names = _recognise(state, content, path)
    tensors = {
        name: value
        for name, value in state.items()
        if isinstance(value, Tensor) and not _HEADS.match(name)
    }
    left_out = sorted(
        beside | {match[0].rstrip(".") for name in state if (match := _HEADS.match(name))}
    )
    ours = {
        name.removeprefix("student."): v for name, v in names.items() if name.startswith("student.")
    }
    heads = _setting(content, _HEAD_COUNTS, int)
    return ForeignWeights(path, what, tensors, ours, left_out, heads)


def _model(content: Any, path: Path) -> dict[str, Any]:
    """The state dict in a file: under ``model`` (fairseq, BEiT) or ``module`` (DeepSpeed), or the
    whole file."""
    nested = [
        content[key]
        for key in ("model", "module", "state_dict")
        if isinstance(content, dict) and key in content
    ]
    for candidate in (*nested, content):
        if isinstance(candidate, dict) and any(
            isinstance(value, Tensor) for value in candidate.values()
        ):
            return {str(name): value for name, value in candidate.items()}
    rule = "holds no model: no dictionary of tensors"
    raise ConfigError("file", path, rule, "give a checkpoint of data2vec")


def _with_usual_names(state: Mapping[str, Any]) -> dict[str, Any]:
    beit = any("patch_embed.conv." in name for name in state)
    usual = {}
    for name, value in state.items():
        for pattern, replacement in (*_RENAMED, *(_RENAMED_BEIT if beit else ())):
            name = re.sub(pattern, replacement, name)
        usual[name] = value
    return usual


def _recognise(state: State, content: Any, path: Path) -> tuple[str, Names]:
    """Which model it is, by a key that only this model has, and its table of names."""
    norm_first = bool(_setting(content, ("layer_norm_first",), bool))
    tables: dict[str, tuple[str, Callable[[State], Names]]] = {
        "quantizer.vars": ("fairseq wav2vec 2.0", partial(_audio1, norm_first=norm_first)),
        "modality_encoders.AUDIO.project_features.2.weight": ("fairseq data2vec 2 audio", _audio2),
        "modality_encoders.IMAGE.local_encoder.proj.weight": ("fairseq data2vec 2 image", _image2),
        "modality_encoders.TEXT.local_encoder.embed_tokens.weight": (
            "fairseq data2vec 2 text",
            _text2,
        ),
        "post_extract_proj.weight": (
            "fairseq data2vec 1 audio",
            partial(_audio1, norm_first=norm_first),
        ),
        "encoder.sentence_encoder.embed_tokens.weight": ("fairseq data2vec 1 text", _text1),
        "patch_embed.proj.weight": ("BEiT data2vec 1 vision", _vision1),
    }
    for key, (what, table) in tables.items():
        if key in state:
            return what, table(state)
    known = "data2vec 1 or 2 or wav2vec 2.0 of fairseq, data2vec 1 of BEiT"
    some = ", ".join(list(state)[:3])
    raise ConfigError(
        "file", path, f"is no model known here (its tensors: {some}, …)", f"give one of {known}"
    )


def _count(state: State, prefix: str) -> int:
    """The number of modules that are numbered from 0 on under ``prefix``."""
    found = re.compile(re.escape(prefix) + r"(\d+)\.")
    return 1 + max((int(match[1]) for name in state if (match := found.match(name))), default=-1)


def _audio1(state: State, norm_first: bool) -> Names:
    """data2vec 1 audio or wav2vec 2.0. That blocks are pre-norm is told by the configuration of the
    file alone; all else by the tensors."""
    weight_norm = "encoder.pos_conv.0.weight_g" in state
    layers = _count(state, "feature_extractor.conv_layers.")
    return keymap.audio1(
        _count(state, "encoder.layers."),
        layers,
        1 if weight_norm else _count(state, "encoder.pos_conv."),
        group_norm="feature_extractor.conv_layers.0.2.weight" in state,
        conv_bias="feature_extractor.conv_layers.0.0.bias" in state,
        weight_norm=weight_norm,
        norm_first=norm_first,
    )


def _text1(state: State) -> Names:
    return keymap.text1(_count(state, "encoder.sentence_encoder.layers."))


def _vision1(state: State) -> Names:
    return keymap.vision1(_count(state, "blocks."))


def _audio2(state: State) -> Names:
    prefix = "modality_encoders.AUDIO."
    layers = _count(state, f"{prefix}local_encoder.conv_layers.")
    # Index 0 has no parameters.
    positions = _count(state, f"{prefix}relative_positional_encoder.") - 1
    return keymap.audio2_stem(layers, positions) | _blocks2(state, "AUDIO")


def _image2(state: State) -> Names:
    return keymap.image2_stem() | _blocks2(state, "IMAGE")


def _text2(state: State) -> Names:
    return keymap.text2_stem() | _blocks2(state, "TEXT")


def _blocks2(state: State, modality: str) -> Names:
    prenet = _count(state, f"modality_encoders.{modality}.context_encoder.blocks.")
    return keymap.data2vec2(modality, prenet + _count(state, "blocks."), prenet, 0, ())


def _setting(content: Any, names: Sequence[str], kind: type) -> Any:
    """A setting that shapes do not tell, from the file's configuration: the one nearest to the top
    that has one of these names and is of this type; None if there is none."""
    parts = [content[k] for k in ("cfg", "args") if isinstance(content, dict) and k in content]
    return next((value for part in parts for value in _settings(part, names, kind)), None)


def _settings(node: Any, names: Sequence[str], kind: type) -> Iterator[Any]:
    node = node.state if isinstance(node, pickles.Record) else node
    if not isinstance(node, dict):
        return
    yield from (node[name] for name in names if isinstance(node.get(name), kind))
    for value in node.values():
        yield from _settings(value, names, kind)
