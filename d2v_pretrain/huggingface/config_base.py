"""What the three configurations share: labels, checks of types, and the file config.json."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

from d2v_pretrain.errors import ConfigError, nearest
from d2v_pretrain.huggingface.activations import ACTIVATIONS, Activation
from d2v_pretrain.huggingface.hub_cache import model_folder

PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")


@dataclass(kw_only=True)
class Config:
    """Base of the configurations. Values are checked when it is made, and again by each model.

    Setting one of ``num_labels``, ``id2label`` and ``label2id`` changes the others to fit. Whole
    numbers given for floats become floats and lists become tuples, because transformers 5 refuses
    files with values of another than the declared type.

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
        dtype: of those weights, as ``"float32"``.
        extra: what a config.json held beyond the documented fields. It is written back and has no
            effect.
    """

    model_type: ClassVar[str]
    # Fields that Hugging Face does not have or declare: written only where they differ from the
    # default.
    unusual: ClassVar[tuple[str, ...]] = ()
    # Properties computed from other fields: written, and ignored when read.
    derived: ClassVar[tuple[str, ...]] = ()

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
    dtype: str | None = None
    extra: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
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
        """Keep the three label fields consistent. Other values are checked by the next model."""
        known = vars(self).get("label2id") is not None  # set last, so the object is complete
        if name == "num_labels" and known and value != self.num_labels:
            name, value = "id2label", _label_names(value)
        super().__setattr__(name, value)
        if name == "id2label" and known:
            vars(self)["num_labels"] = len(value)
            super().__setattr__("label2id", _reversed(value))

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
        if self.problem_type == "single_label_classification" and self.num_labels == 1:
            remedy = "set num_labels=2 or problem_type=regression"
            self._refuse("num_labels", "leaves nothing to classify", remedy)
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

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json: every field that Hugging Face documents, as plain types."""
        content: dict[str, Any] = dict(self.extra)
        for f in fields(self):
            value = getattr(self, f.name)
            usual = f.name not in self.unusual or value != f.default
            if usual and f.name not in ("extra", "num_labels"):
                content[f.name] = list(value) if isinstance(value, tuple) else value
        derived = {key: getattr(self, key) for key in self.derived}
        return content | derived | {"model_type": self.model_type}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], **overrides: Any) -> Self:
        """Read what ``to_dict`` or transformers wrote.

        Args:
            content: unknown keys are kept in ``extra``.
            overrides: fields to replace.

        Raises:
            ConfigError: it is another model's configuration, a field has the wrong type, or an
                override is not a field.
        """
        names = [f.name for f in fields(cls) if f.name != "extra"]
        for key, value in overrides.items():
            if key not in names:
                rule = f"is no field of {cls.__name__}{nearest(key, names)}"
                raise ConfigError(key, value, rule, "correct its name, or leave it out")
        content = dict(content)
        found = content.pop("model_type", cls.model_type)
        if found != cls.model_type:
            rule, remedy = f"is not {cls.model_type}", "use the classes of that model type"
            raise ConfigError("model_type", found, rule, remedy)
        before = content.pop("torch_dtype", None)  # the name of dtype before transformers 5
        if content.get("dtype") is None:
            content["dtype"] = before
        if {"num_labels", "id2label"} & set(overrides):
            for key in ("num_labels", "id2label", "label2id"):
                content.pop(key, None)
        known = {key: value for key, value in content.items() if key in names}
        unread = {*names, *cls.derived}
        extra = {key: value for key, value in content.items() if key not in unread}
        return cls(**(known | overrides), extra=extra)

    @classmethod
    def from_pretrained(cls, directory: str | Path, **overrides: Any) -> Self:
        """Read ``config.json``.

        Args:
            directory: a directory with that file, or a model's name in the local hub cache.
            overrides: see ``from_dict``.

        Raises:
            ConfigError: there is no such file, it is no JSON object; see also ``from_dict``.
        """
        path = model_folder(directory) / "config.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            remedy = "name a directory that has one, or a model that lies in the local hub cache"
            remedy += " (nothing is downloaded)"
            raise ConfigError(str(path), "missing", "is needed", remedy) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(str(path), error, "is no valid JSON", "copy the file again") from None
        if not isinstance(content, dict):
            raise ConfigError(str(path), type(content).__name__, "must hold a JSON object")
        return cls.from_dict(content, **overrides)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``directory/config.json``; the directory is made.

        Raises:
            ConfigError: an activation is a function, which has no name to write.
        """
        content = self.to_dict()
        for key in (key for key, value in content.items() if callable(value)):
            remedy = "choose an activation by its name before you save"
            raise ConfigError(key, content[key], "is a function, which a file cannot hold", remedy)
        Path(directory).mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=2, sort_keys=True)
        (Path(directory) / "config.json").write_text(text + "\n", encoding="utf-8")


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
    names = {type(None): "nothing"}
    wanted = " or ".join(names.get(o, getattr(o, "__name__", str(o))) for o in options)
    raise ConfigError(key, repr(value), f"must be of type {wanted}")
