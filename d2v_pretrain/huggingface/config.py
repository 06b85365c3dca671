"""The three configurations of the family."""

from d2v_pretrain.huggingface.config_audio import Data2VecAudioConfig
from d2v_pretrain.huggingface.config_base import ACTIVATIONS, Config
from d2v_pretrain.huggingface.config_text import Data2VecTextConfig
from d2v_pretrain.huggingface.config_vision import Data2VecVisionConfig

__all__ = [
    "ACTIVATIONS",
    "Config",
    "Data2VecAudioConfig",
    "Data2VecTextConfig",
    "Data2VecVisionConfig",
]
