"""Our own format: a folder with config.json (the encoder's construction) and model.safetensors;
save and load."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.weights.construct import construct
from d2v_pretrain.weights.foreign import ForeignWeights
from d2v_pretrain.weights.keymap import Names

MODEL_TYPE = "d2v_pretrain"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
_HOME = "d2v_pretrain.models."  # what a config.json may name
_PREFIX = (
    "encoder."  # of every tensor: that of the module around the encoder in ``interop.remote_model``
)


def save(
    folder: Path, encoder: Encoder, architecture: Mapping[str, Any], more: Mapping[str, Any]
) -> None:
    """Write a bundle.

    Args:
        folder: made if it is not there. encoder: its weights.
        architecture: how it was constructed, as a configuration's node ``architecture``, resolved.
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
    except (OSError, ValueError) as error:
        raise ConfigError(
            "folder", folder, f"has no {CONFIG} that can be read ({error})", "export it again"
        ) from None
    if not isinstance(content, dict) or "model_type" not in content:
        raise ConfigError(
            "folder", folder, f"has a {CONFIG} without model_type", "give a folder with a model"
        )
    return content


def load(folder: str | Path) -> Encoder:
    """The encoder of a bundle, in evaluation mode; ``encoder.encode(batch).tokens`` are its
    features.

    Nothing but classes of ``d2v_pretrain.models`` is built.

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
    try:
        encoder = construct(config(folder)["architecture"], model_class)
    except (KeyError, TypeError, ValueError, AssertionError, ImportError, AttributeError) as error:
        rule = f"describes no encoder that can be built ({error})"
        raise ConfigError(
            "folder", folder / CONFIG, rule, "export it again, with this version"
        ) from None
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


def model_class(target: str) -> Callable[..., Any]:
    """The class below ``d2v_pretrain.models`` of that name; a file must not name anything else to
    be called.

    Raises:
        ValueError: it is none.
    """
    module, _, name = target.rpartition(".")
    if not target.startswith(_HOME):
        raise ValueError(f"{target} is not below {_HOME}")
    found = getattr(importlib.import_module(module), name)
    if not (isinstance(found, type) and found.__module__ == module):
        raise ValueError(f"{target} is not a class")
    return found
