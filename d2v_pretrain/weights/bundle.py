"""Bundles, our own format of an encoder: a folder with ``config.json``, which says how the encoder
is constructed, and ``model.safetensors``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.weights.foreign import ForeignWeights
from d2v_pretrain.weights.gate import Gate
from d2v_pretrain.weights.keymap import Names

MODEL_TYPE = "d2v_pretrain"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
# Tensor names begin with this prefix, because ``huggingface.remote_model`` names its encoder so.
_PREFIX = "encoder."


def save(
    folder: Path, encoder: Encoder, architecture: Mapping[str, Any], more: Mapping[str, Any]
) -> None:
    """Write a bundle.

    Args:
        folder: made if it does not exist.
        encoder: its weights are written.
        architecture: how it is constructed: the node ``architecture`` of a configuration, resolved.
        more: further entries of config.json, of plain types.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_type": MODEL_TYPE, "architecture": dict(architecture), **more}
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n")
    state = {_PREFIX + name: value.contiguous() for name, value in encoder.state_dict().items()}
    save_file(state, folder / WEIGHTS, {"format": "pt"})


def is_bundle(folder: Path) -> bool:
    """Whether a folder's config.json is one of ours."""
    return (folder / CONFIG).is_file() and config(folder)["model_type"] == MODEL_TYPE


def config(folder: Path) -> dict[str, Any]:
    """The content of config.json, with a ``model_type``.

    Raises:
        ConfigError: it is not there, is not JSON or names no type.
    """
    try:
        content = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError, RecursionError) as error:
        rule = f"has no {CONFIG} that can be read ({error})"
        raise ConfigError("folder", folder, rule, "export it again") from None
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        rule = f"has a {CONFIG} without model_type"
        raise ConfigError("folder", folder, rule, "give a folder with a model")
    return content


def load(folder: str | Path, trust: Sequence[str] = ()) -> Encoder:
    """The encoder of a bundle, in evaluation mode; ``encoder.encode(batch).tokens`` are features.

    Only classes of ``d2v_pretrain.models`` are constructed, whatever the file says, and those of
    packages in ``trust``.

    Raises:
        ConfigError: it is no bundle, or its weights do not fit its config.json.
    """
    folder = Path(folder)
    if not is_bundle(folder):
        kind = config(folder)["model_type"]
        remedy = (
            "load it with d2v_pretrain.huggingface"
            if kind.startswith("data2vec-")
            else "give a bundle"
        )
        raise ConfigError("folder", folder, f"holds a model of type {kind}, not a bundle", remedy)
    gate, architecture = Gate(tuple(trust)), config(folder).get("architecture")
    encoder = gate.encoder(architecture, folder / CONFIG)
    encoder.load_state_dict(read(folder).fitted(encoder))
    return encoder.eval()


def read(folder: Path) -> ForeignWeights:
    """The weights of a bundle.

    Raises:
        ConfigError: the file is not there or is damaged.
    """
    try:
        tensors = load_file(folder / WEIGHTS)
    except Exception as error:  # safetensors raises a class of its own that it does not promise
        rule = f"cannot be read ({error})"
        raise ConfigError(
            "file", folder / WEIGHTS, rule, "copy it again, or export it again"
        ) from None
    names: Names = {name.removeprefix(_PREFIX): name for name in tensors}
    return ForeignWeights(folder, "d2v_pretrain bundle", tensors, names)
