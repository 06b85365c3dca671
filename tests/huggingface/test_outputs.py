"""Outputs behave as those of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from d2v_pretrain.huggingface import outputs

transformers = pytest.importorskip("transformers")
from transformers import modeling_outputs as theirs  # noqa: E402

CLASSES = [
    "Wav2Vec2BaseModelOutput",
    "BaseModelOutputWithPooling",
    "BaseModelOutputWithPoolingAndCrossAttentions",
    "CausalLMOutput",
    "MaskedLMOutput",
    "SequenceClassifierOutput",
    "TokenClassifierOutput",
    "MultipleChoiceModelOutput",
    "ImageClassifierOutput",
    "SemanticSegmenterOutput",
    "CausalLMOutputWithCrossAttentions",
    "QuestionAnsweringModelOutput",
    "XVectorOutput",
]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("missing", [0, 1, 2])
def test_as_theirs(name: str, missing: int) -> None:
    """All fields, or without one: the same names in the same order, the same values by name, index
    and slice."""
    kind = getattr(theirs, name)
    names = list(kind.__dataclass_fields__)
    given = {n: torch.tensor(float(i)) for i, n in enumerate(names) if missing == 0 or i != missing}
    mine, their = getattr(outputs, name)(**given), kind(**given)
    assert (
        list(mine) == list(their)
        and list(mine.keys()) == list(their.keys())
        and len(mine) == len(their)
    )
    assert mine.to_tuple() == their.to_tuple() == mine[:] and tuple(mine.values()) == tuple(
        their.values()
    )
    for key in (0, 1, -1, slice(2), slice(1, None), *their):
        assert mine[key] == their[key]
    assert all(getattr(mine, n) == getattr(their, n) for n in names)
    assert dict(mine.items()) == dict(their.items()) and ("loss" in mine) == ("loss" in their)


def test_absent_fields() -> None:
    mine: Any = outputs.MaskedLMOutput(logits=torch.zeros(2))
    assert mine.loss is None and mine.get("loss") is None
    with pytest.raises(KeyError, match="loss"):
        mine["loss"]
    with pytest.raises(IndexError):
        mine[1]
    logits, states = outputs.MaskedLMOutput(logits=torch.zeros(2), hidden_states=(torch.ones(1),))[
        :2
    ]
    assert logits.shape == (2,) and len(states) == 1
