"""The documented Data2Vec classes: configurations, models and heads, with weights to and from
Hugging Face."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULES = {
    "config_audio": ("Data2VecAudioConfig",),
    "config_text": ("Data2VecTextConfig",),
    "config_vision": ("Data2VecVisionConfig",),
    "audio": ("Data2VecAudioPreTrainedModel", "Data2VecAudioModel"),
    "audio_heads": (
        "Data2VecAudioForCTC",
        "Data2VecAudioForSequenceClassification",
        "Data2VecAudioForAudioFrameClassification",
    ),
    "audio_xvector": ("Data2VecAudioForXVector",),
    "text_base": ("Data2VecTextPreTrainedModel",),
    "text": ("Data2VecTextModel",),
    "text_lm": ("Data2VecTextForMaskedLM", "Data2VecTextForCausalLM"),
    "text_heads": (
        "Data2VecTextForSequenceClassification",
        "Data2VecTextForMultipleChoice",
        "Data2VecTextForTokenClassification",
        "Data2VecTextForQuestionAnswering",
    ),
    "vision": ("Data2VecVisionPreTrainedModel", "Data2VecVisionModel"),
    "vision_heads": ("Data2VecVisionForImageClassification",),
    "vision_segmentation": ("Data2VecVisionForSemanticSegmentation",),
    "preprocess_audio": ("Data2VecAudioFeatureExtractor",),
    "preprocess_vision": ("Data2VecVisionImageProcessor",),
}
# Class -> the module that it is imported from when it is asked for.
PLACES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{PLACES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *PLACES]
