"""d2v_pretrain: data2vec 1.0 and 2.0 self-supervised pretraining for speech, images and text.

``pretrain(modality, data, …)`` trains, ``load(PATH).encoder(inputs)`` gives features, and the
``Data2Vec…`` classes are the documented models with weights to and from Hugging Face.
"""

from __future__ import annotations

import signal
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from d2v_pretrain.api import Features as Features
    from d2v_pretrain.api import Pretrained as Pretrained
    from d2v_pretrain.api import load as load
    from d2v_pretrain.api import pretrain as pretrain

_typed = any(a == "-m" and b.startswith("d2v_pretrain.") for a, b in pairwise(sys.orig_argv))
if _typed and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    # `python -m d2v_pretrain.evaluate` will import torch for seconds. Until the command listens,
    # Ctrl-C ends the process without a stack trace.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

__version__ = "0.1.0"
_API = ("Features", "Pretrained", "load", "pretrain")


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for, because torch takes seconds."""
    if name in _API:
        from d2v_pretrain import api

        return getattr(api, name)
    if name.startswith("Data2Vec"):
        from d2v_pretrain import huggingface

        return getattr(huggingface, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    from d2v_pretrain.huggingface import PLACES

    return sorted({*globals(), *_API, *PLACES})
