"""The outputs of models. Their values are found by name, index or slice, as in a mapping and as in
a tuple; fields that are None are left out."""

from __future__ import annotations

import re
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.export import register_dataclass

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


class ModelOutput(OrderedDict):
    """A dict of the fields that are not None, in their order.

    Values are read as ``out.logits``, ``out["logits"]``, ``out[0]``, ``loss, logits = out[:2]`` or
    ``out.to_tuple()``. Iteration yields names. A field that is set to None is no longer listed.
    Tools rebuild an output from its items, as ``type(out)({name: change(out[name]) …})`` or from
    pairs, so the first argument may be a mapping or pairs in the place of the first field.
    """

    _plain: ClassVar[type | None] = None  # the class in this file, see ``for_tools``

    def __post_init__(self) -> None:
        first, *others = (f.name for f in fields(self))  # type: ignore[arg-type]
        given = getattr(self, first)
        if isinstance(given, Tensor) or any(getattr(self, name) is not None for name in others):
            return
        items = list(given.items() if isinstance(given, Mapping) else _pairs(given))
        if items or isinstance(given, Mapping):
            setattr(self, first, None)
        for name, value in items:
            self[name] = value

    def __getitem__(self, key: str | int | slice) -> Any:
        """A field by its name, or by its place among the fields that are not None."""
        if not isinstance(key, str):
            return self.to_tuple()[key]
        return OrderedDict.__getitem__(self, _current(key))

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self, key, value)
        if value is not None:
            OrderedDict.__setitem__(self, _current(key), value)

    def __setattr__(self, name: str, value: Any) -> None:
        name = _current(name)
        object.__setattr__(self, name, value)
        if value is None and name in self:
            OrderedDict.__delitem__(self, name)
        elif value is not None and name in self.__dataclass_fields__:
            OrderedDict.__setitem__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        """The cache by the name that the installed transformers does not use for it."""
        if name in ("cache", "past_key_values") and CACHE in self.__dataclass_fields__:
            return getattr(self, CACHE)
        raise AttributeError(f"{type(self).__name__} has no field {name!r}")

    def __contains__(self, key: object) -> bool:
        return OrderedDict.__contains__(self, _current(key))

    def get(self, key: str, default: Any = None) -> Any:
        return OrderedDict.get(self, _current(key), default)

    def __reduce__(self) -> Any:
        return self._plain or type(self), (dict(self),)

    def to_tuple(self) -> tuple:
        """The values that are not None."""
        return tuple(self.values())

    def _fixed(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"fields of {type(self).__name__} cannot be removed; set them to None")

    __delitem__ = pop = popitem = setdefault = update = clear = _fixed


def _current(key: Any) -> Any:
    """The name that a field has here."""
    return CACHE if key in ("cache", "past_key_values") else key


def _pairs(given: Any) -> list[tuple[str, Any]]:
    """The (name, value) pairs in ``given``; nothing if it holds something else."""
    pairs = list(given) if isinstance(given, (list, tuple, Iterator)) else []
    named = [isinstance(p, (list, tuple)) and len(p) == 2 and isinstance(p[0], str) for p in pairs]
    if any(named) and not all(named):
        raise ValueError(f"pairs of a name and a value cannot stand beside others: {pairs}")
    return pairs if any(named) else []


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


def for_tools(output: ModelOutput) -> ModelOutput:
    """The output, also as an instance of transformers' ``ModelOutput`` if transformers has been
    imported: its pipelines ask for that class. Compiled and exported models return ours."""
    theirs = sys.modules.get("transformers.utils.generic")
    if theirs is None or torch.compiler.is_compiling():
        return output
    return _joined(type(output), theirs.ModelOutput)(dict(output))


@cache
def _joined(ours: type, theirs: type) -> type:
    return type(theirs)(ours.__name__, (ours, theirs), {"_plain": ours})


# torch.export, DDP with a static graph and others take outputs apart into their tensors.
for _kind in [kind for base in (ModelOutput, _Head) for kind in base.__subclasses__()]:
    register_dataclass(_kind, serialized_type_name=f"{__name__}.{_kind.__name__}")
