"""What the three configurations share: fields, labels and checks of types."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

import torch

from d2v_pretrain.errors import ConfigError, nearest
from d2v_pretrain.huggingface.activations import ACTIVATIONS, Activation
from d2v_pretrain.huggingface.config_file import ConfigFile

PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")


@dataclass(init=False, eq=False)
class Config(ConfigFile):
    """Base of the configurations. Values are checked when it is made, and again by each model.

    Further keyword arguments, and attributes that are set later, are kept, written and read again;
    they have no effect. A warning names the field that a misspelt one may have meant. Setting one
    of ``num_labels``, ``id2label`` and ``label2id`` changes the others to fit. Whole numbers given
    for floats become floats and lists become tuples, because transformers 5 refuses files with
    values of another than the declared type.

    Args:
        hidden_size: D, channels of a token.
        num_hidden_layers: number of blocks.
        num_attention_heads: number of attention heads, a divisor of D.
        intermediate_size: hidden width of the feed-forward part.
        hidden_act: activation of the feed-forward part, a name in ``ACTIVATIONS`` or a function
            Tensor -> Tensor. ``gelu`` is the exact GELU.
        initializer_range: standard deviation of linear layers and embeddings at the start.
        output_hidden_states: models return every block's output unless told otherwise.
        output_attentions: models return attention probabilities unless told otherwise.
        return_dict: models return a ``ModelOutput``, else a tuple, unless told otherwise.
        num_labels: rows of a classifier; 2 by default.
        id2label: label names by index; ``LABEL_0`` ... by default.
        label2id: the reverse.
        problem_type: regression, single_label_classification or multi_label_classification; None
            decides by the labels of each call.
        architectures: class names that the weights beside this configuration were saved from.
        dtype: of those weights; a name like ``"float32"`` is taken, too.
    """

    # transformers' tools ask every configuration for these.
    is_encoder_decoder: ClassVar[bool] = False
    torchscript: ClassVar[bool] = False
    attribute_map: ClassVar[dict[str, str]] = {}
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str | Activation = "gelu"
    initializer_range: float = 0.02
    output_hidden_states: bool = False
    output_attentions: bool = False
    return_dict: bool = True
    num_labels: int = 2
    id2label: dict | None = None
    label2id: dict | None = None
    problem_type: str | None = None
    architectures: tuple[str, ...] | None = None
    dtype: torch.dtype | None = None

    def __init__(self, **settings: Any) -> None:
        if "torch_dtype" in settings:  # the name of dtype before transformers 5
            settings["dtype"] = settings.pop("torch_dtype")
        given = {name: settings.pop(name) for name in self.names() if name in settings}
        defaults = {f.name: f.default for f in fields(self)}
        vars(self).update(defaults | given)
        self.dtype = self.dtype  # a name becomes the dtype
        self._complete()
        self.keep({key: value for key, value in settings.items() if key not in self.derived})

    def _complete(self) -> None:
        """Compute the fields that depend on others, and check all."""
        if type(self.num_labels) is not int or self.num_labels < 0:
            self._refuse("num_labels", "must be a whole number, 0 or more")
        names = self.id2label
        if names is None:
            names = _label_names(self.num_labels)
        elif self.num_labels not in (2, len(names)):  # 2 is the default: perhaps it was not given
            rule = f"must be the {len(names)} names of id2label"
            self._refuse("num_labels", rule, "leave one of them out")
        names = {int(index): name for index, name in names.items()}  # keys in JSON are strings
        vars(self).update(
            num_labels=len(names), id2label=names, label2id=self.label2id or _reversed(names)
        )
        self.validate()

    def __setattr__(self, name: str, value: Any) -> None:
        """Keep the three label fields consistent, and take a dtype by its name. Other values are
        checked by the next model."""
        if name == "dtype" and isinstance(value, str):
            value = getattr(torch, value.removeprefix("torch."), value)
        known = vars(self).get("label2id") is not None  # set last, so the object is complete
        if name == "num_labels" and known and value != self.num_labels:
            name, value = "id2label", _label_names(value)
        super().__setattr__(name, value)
        if name == "id2label" and known:
            vars(self)["num_labels"] = len(value)
            super().__setattr__("label2id", _reversed(value))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """``dtype`` by its name before transformers 5."""
        return self.dtype

    @torch_dtype.setter
    def torch_dtype(self, value: torch.dtype | str | None) -> None:
        self.dtype = value  # type: ignore[assignment]

    @property
    def use_return_dict(self) -> bool:
        """Whether models return a ``ModelOutput``; TorchScript needs tuples."""
        return self.return_dict and not self.torchscript

    @property
    def name_or_path(self) -> str:
        """What this configuration was read from; empty if it was made."""
        return getattr(self, "_name_or_path", "")

    @name_or_path.setter
    def name_or_path(self, value: str) -> None:
        self._name_or_path = str(value)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Config:
        """This configuration: it has no others inside. Tools of transformers ask for it."""
        return self

    @property
    def mlp_ratio(self) -> float:
        """``intermediate_size / hidden_size``, as ``Block`` takes it."""
        return self.intermediate_size / self.hidden_size

    def validate(self) -> None:
        """Check every field's type and the rules between fields.

        Raises:
            ConfigError: names the field, its value and the rule.
        """
        hints = get_type_hints(type(self))
        for name in (f.name for f in fields(self)):
            vars(self)[name] = _checked(name, getattr(self, name), hints[name])
        if self.problem_type not in (None, *PROBLEMS):
            self._refuse("problem_type", f"must be one of {', '.join(PROBLEMS)}")
        self._check()

    def _check(self) -> None:
        """Check the rules between the fields of one modality."""

    def _refuse(self, key: str, rule: str, remedy: str = "") -> None:
        raise ConfigError(key, getattr(self, key), rule, remedy)

    def _positive(self, *keys: str) -> None:
        for key in keys:
            value = getattr(self, key)
            if min(value if isinstance(value, tuple) else (value,)) < 1:
                self._refuse(key, "must be at least 1")

    def _probability(self, *keys: str) -> None:
        for key in keys:
            if not 0 <= getattr(self, key) <= 1:
                self._refuse(key, "must be a probability, from 0 to 1")

    def _common(self, *activations: str) -> None:
        """Check the rules of every modality; ``activations`` are the fields that name one."""
        self._positive("hidden_size", "num_hidden_layers")
        self._positive("num_attention_heads", "intermediate_size")
        if self.hidden_size % self.num_attention_heads:
            rule = f"must be a multiple of num_attention_heads, {self.num_attention_heads}"
            self._refuse("hidden_size", rule)
        for key in activations:
            chosen = getattr(self, key)
            if isinstance(chosen, str) and chosen not in ACTIVATIONS:
                known = f"must be one of {', '.join(ACTIVATIONS)}, or a function"
                self._refuse(key, known + nearest(chosen, ACTIVATIONS))


def _label_names(count: int) -> dict[int, str]:
    return {index: f"LABEL_{index}" for index in range(count)}


def _reversed(names: dict[int, str]) -> dict[str, int]:
    return {name: index for index, name in names.items()}


def _checked(key: str, value: Any, hint: Any) -> Any:
    """The value as the declared type: a whole number becomes a float, a sequence a tuple."""
    union = get_origin(hint) in (Union, types.UnionType)
    options = get_args(hint) if union else (hint,)
    if value is None and type(None) in options:
        return None
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    for option in options:
        if get_origin(option) is tuple and listed:
            return tuple(_checked(key, item, get_args(option)[0]) for item in value)
        if get_origin(option) is Callable and callable(value):
            return value
        if option is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if option is dict and isinstance(value, Mapping):
            return dict(value)
        if option in (bool, int, str) and type(value) is option:
            return value
        if option is torch.dtype and isinstance(value, option):
            return value
    names = {type(None): "nothing"}
    wanted = " or ".join(names.get(o, getattr(o, "__name__", str(o))) for o in options)
    raise ConfigError(key, repr(value), f"must be of type {wanted}")
