"""``init_from=PATH``: read the weights that a run starts from, and put them into its encoders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from d2v_pretrain.checkpoint import file as checkpoint
from d2v_pretrain.checkpoint.saved_run import weights
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface import convert
from d2v_pretrain.huggingface.hub_cache import model_folder
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.weights import bundle, fairseq
from d2v_pretrain.weights.foreign import MASK_VECTOR, ForeignWeights, listed

# How files of torch begin: as zip archives, or as pickles before torch 1.6.
_BEGINNINGS = (b"PK", b"\x80")


def source(name: str) -> Path:
    """The file or folder that ``init_from=`` names, looked at without reading its weights.

    Args:
        name: a path; or a name on Hugging Face's hub, ``org/name``, of a model in the local cache.

    Raises:
        ConfigError: there is none, or it cannot hold a model.
    """
    path = model_folder(Path(name).expanduser())
    if not path.exists():
        rule, remedy = "is not a file or folder", "give the path of a checkpoint"
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            rule += ", and no model of this name is in the local hub cache"
            remedy = f"give the path of a checkpoint, or type hf download {name} first"
        raise ConfigError("init_from", name, rule, remedy)
    if path.is_dir() and not (path / bundle.CONFIG).is_file():
        raise _no_model(path)
    if not path.is_dir() and checkpoint.step_of(path) < 0 and not _is_of_torch(path):
        raise ConfigError("init_from", name, "cannot be read as a checkpoint")
    return path


def _is_of_torch(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(2).startswith(_BEGINNINGS)


def _no_model(path: Path) -> ConfigError:
    remedy = "give a bundle, a folder of transformers, or a run's checkpoints/last.ckpt"
    return ConfigError("init_from", path, "is no folder with a model", remedy)


def read(path: Path) -> ForeignWeights:
    """The weights of an encoder.

    Args:
        path: a checkpoint of ours (the student is read), a bundle, a folder of transformers, or a
            checkpoint of fairseq or BEiT.

    Raises:
        ConfigError: it is none of these, or damaged.
    """
    if checkpoint.step_of(path) >= 0:
        return weights(path, "student")
    if path.is_file():
        return fairseq.read(path)
    if (path / bundle.CONFIG).is_file():
        return bundle.read(path) if bundle.is_bundle(path) else convert.read(path)
    raise _no_model(path)


def load_weights(encoders: Sequence[Encoder], source: ForeignWeights) -> str:
    """Put the weights into every encoder.

    Returns:
        A line for the user: what was read from where, how many tensors, what was left out.

    Raises:
        ConfigError: see ``ForeignWeights.fitted``.
    """
    state = source.fitted(encoders[0])
    for encoder in encoders:
        left = encoder.load_state_dict(state, strict=False)
        assert set(left.missing_keys) <= {MASK_VECTOR} and not left.unexpected_keys
    into = "student and teacher" if len(encoders) > 1 else "the encoder"
    line = f"weights from {source.path} ({source.what}): {len(state)} tensors into {into}"
    line += f"; left out {listed(source.left_out)}" if source.left_out else ""
    fresh = MASK_VECTOR in encoders[0].state_dict() and MASK_VECTOR not in state
    return line + (f"; {MASK_VECTOR} starts at random, the source has none" if fresh else "")
