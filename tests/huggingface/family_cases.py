"""All documented model classes, tiny and random, ours and theirs with the same weights, and inputs
for each."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from d2v_pretrain import huggingface as family
from tests.huggingface import audio_cases, vision_cases

transformers = pytest.importorskip("transformers")

TEXT_SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 40,
    "type_vocab_size": 3,
}
SIZES: dict[str, dict[str, Any]] = {
    "Audio": audio_cases.SIZES | {"layerdrop": 0.0},
    "Text": TEXT_SIZES,
    "Vision": vision_cases.SIZES,
}
BASES = ("AudioModel", "TextModel", "VisionModel")
HEADS = (
    *("AudioForCTC", "AudioForSequenceClassification", "AudioForAudioFrameClassification"),
    *("AudioForXVector", "TextForMaskedLM", "TextForCausalLM", "TextForSequenceClassification"),
    *("TextForMultipleChoice", "TextForTokenClassification", "TextForQuestionAnswering"),
    *("VisionForImageClassification", "VisionForSemanticSegmentation"),
)
CLASSES = (*BASES, *HEADS)
CHOICES = 3


def kind(name: str) -> str:
    """Audio, Text or Vision."""
    return next(kind for kind in SIZES if name.startswith(kind))


def theirs(name: str, **settings: Any) -> Any:
    """transformers' class ``Data2Vec<name>``, tiny and random, in eval mode."""
    own = {"is_decoder": True} if name == "TextForCausalLM" else {}
    labels = {"num_labels": 2 if name.endswith("QuestionAnswering") else 5}
    sizes = SIZES[kind(name)] | own | labels | settings
    config = getattr(transformers, f"Data2Vec{kind(name)}Config")(**sizes)
    config._attn_implementation = "eager"
    make = vision_cases.randomised if kind(name) == "Vision" else audio_cases.randomised
    return make(getattr(transformers, f"Data2Vec{name}")(config))


def ours(model: Any) -> Any:
    """Our class of that name with the same weights."""
    return getattr(family, type(model).__name__).from_transformers(model)


@cache
def both(name: str) -> tuple[Any, Any]:
    """Ours and theirs; not to be changed."""
    model = theirs(name)
    return ours(model), model


def inputs(name: str, rows: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """The first argument of ``forward``, and a mask if the class takes one."""
    g = torch.Generator().manual_seed(seed)
    if kind(name) == "Vision":
        return {"pixel_values": torch.randn(rows, 3, 32, 32, generator=g)}
    if kind(name) == "Audio":
        mask = torch.ones(rows, 1200, dtype=torch.long)
        mask[-1, 900:] = 0
        waves = torch.randn(rows, 1200, generator=g) * mask
        return {"input_values": waves, "attention_mask": mask}
    shape = (rows, CHOICES, 11) if name.endswith("MultipleChoice") else (rows, 11)
    mask = torch.ones(shape, dtype=torch.long)
    mask[-1, ..., 8:] = 0
    ids = torch.randint(4, 99, shape, generator=g).masked_fill(mask == 0, 1)
    return {"input_ids": ids, "attention_mask": mask}


def labels(name: str, rows: int = 2, seed: int = 1) -> dict[str, Tensor]:
    """Labels for a head."""
    g = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, (rows, *shape), generator=g)

    if name.endswith("QuestionAnswering"):
        return {"start_positions": draw(4), "end_positions": draw(8)}
    if name.endswith("FrameClassification"):
        frames = int(both(name)[0].base_model.frames(torch.zeros(1, 1200), None))
        return {"labels": torch.eye(5)[draw(5, frames)]}
    shapes: dict[str, tuple[int, ...]] = {
        "AudioForCTC": (19, 6),
        "TextForMaskedLM": (99, 11),
        "TextForCausalLM": (99, 11),
        "TextForTokenClassification": (5, 11),
        "TextForMultipleChoice": (CHOICES,),
        "VisionForSemanticSegmentation": (5, 32, 32),
    }
    high, *shape = shapes.get(name, (5,))
    return {"labels": draw(high, *shape) + (1 if name == "AudioForCTC" else 0)}
