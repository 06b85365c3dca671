"""d2v_pretrain: data2vec 1.0 and 2.0 self-supervised pretraining for speech, images and text."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``from d2v_pretrain import Data2VecAudioModel, load``, without torch until then."""
    if name == "load":
        from d2v_pretrain.weights.bundle import load

        return load
    if name.startswith("Data2Vec"):
        from d2v_pretrain import huggingface as family

        return getattr(family, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
