"""The outputs of models. Their values are found by name, index or slice, as in a mapping and as in
a tuple; fields that are None are left out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import Tensor

Tensors = tuple[Tensor, ...]
Past = tuple[Tensors, ...]


def _name_of_the_cache() -> str:
    try:
        found = re.match(r"(\d+)\.(\d+)", version("transformers"))
    except PackageNotFoundError:
        return "past_key_values"
    renamed = found is not None and tuple(map(int, found.groups())) >= (5, 24)
    return "cache" if renamed else "past_key_values"


# transformers 5.24 renamed the output field `past_key_values` to `cache`. Our outputs list it under
# the name of the installed version (the older name without transformers); both names can be read.
CACHE = _name_of_the_cache()


@dataclass(eq=False)
class ModelOutput(Mapping):
    """A mapping of the fields that are not None, in their order.

    Values are read as ``out.logits``, ``out["logits"]``, ``out[0]``, ``loss, logits = out[:2]`` or
    ``out.to_tuple()``. Iteration yields names, as in Hugging Face.
    """

    def __getitem__(self, key: str | int | slice) -> Any:
        """A field by its name, or by its place among the fields that are not None."""
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if (CACHE if key in ("cache", "past_key_values") else key) not in list(self):
            raise KeyError(key)
        return getattr(self, key)

    def __getattr__(self, name: str) -> Any:
        """The cache by the name that the installed transformers does not use for it."""
        if name in ("cache", "past_key_values") and CACHE in self.__dataclass_fields__:
            return getattr(self, CACHE)
        raise AttributeError(f"{type(self).__name__} has no field {name!r}")

    def __iter__(self) -> Iterator[str]:
        return iter([f.name for f in fields(self) if getattr(self, f.name) is not None])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def to_tuple(self) -> tuple:
        """The values that are not None."""
        return tuple(getattr(self, name) for name in self)


@dataclass(eq=False)
class Wav2Vec2BaseModelOutput(ModelOutput):
    """Output of the audio encoder; ``extract_features`` (clips, frames, channels) are the
    normalised features of the stem before its projection."""

    last_hidden_state: Tensor | None = None
    extract_features: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass(eq=False)
class BaseModelOutputWithPooling(ModelOutput):
    """Output of an encoder with a pooler; ``pooler_output`` is (inputs, width)."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass(eq=False)
class BaseModelOutputWithPoolingAndCrossAttentions(ModelOutput):
    """Output of the text encoder or decoder.

    ``past_key_values``, also called ``cache``, holds (keys, values) of every block, each (texts,
    heads, tokens, channels of a head). With cross attention, keys and values of the context follow
    them.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: Tensors | None = None
    if CACHE == "cache":
        cache: Past | None = None
    else:
        past_key_values: Past | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@dataclass(eq=False)
class _Head(ModelOutput):
    """A loss (), logits, and the states and attentions that were asked for."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


class CausalLMOutput(_Head):
    """Output for speech recognition by CTC; logits (clips, frames, characters)."""


class MaskedLMOutput(_Head):
    """Logits (texts, tokens, vocabulary)."""


class SequenceClassifierOutput(_Head):
    """Logits (inputs, classes)."""


class TokenClassifierOutput(_Head):
    """Logits (texts, tokens, classes)."""


class MultipleChoiceModelOutput(_Head):
    """Logits (texts, choices)."""


class ImageClassifierOutput(_Head):
    """Logits (inputs, classes)."""


class SemanticSegmenterOutput(_Head):
    """Logits (images, classes, height, width); height and width are smaller than those of the
    image."""


@dataclass(eq=False)
class CausalLMOutputWithCrossAttentions(ModelOutput):
    """Logits (texts, tokens, vocabulary); the cache as in
    ``BaseModelOutputWithPoolingAndCrossAttentions``."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    if CACHE == "cache":
        cache: Past | None = None
    else:
        past_key_values: Past | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@dataclass(eq=False)
class QuestionAnsweringModelOutput(ModelOutput):
    """Logits (texts, tokens) of the first and of the last token of the answer."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass(eq=False)
class XVectorOutput(ModelOutput):
    """Logits and embeddings, (clips, xvector_output_dim) each."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    embeddings: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
