"""``init_from``: whatever the path is (a bundle, a Hugging Face folder, a published checkpoint) ->
its weights."""

from __future__ import annotations

from pathlib import Path

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface import convert
from d2v_pretrain.weights import bundle, fairseq
from d2v_pretrain.weights.foreign import ForeignWeights


def read(path: Path) -> ForeignWeights:
    """The encoder's weights in a file or folder that is none of our checkpoints.

    Raises:
        ConfigError: it is none of the formats, or damaged.
    """
    if path.is_file():
        return fairseq.read(path)
    if (path / bundle.CONFIG).is_file():
        return bundle.read(path) if bundle.is_bundle(path) else convert.read(path)
    raise ConfigError(
        "init_from",
        path,
        "is no folder with a model",
        "give a bundle, a folder of transformers, or a run's checkpoints/last.ckpt",
    )
