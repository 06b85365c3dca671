"""What the three configurations share: labels, checks of types, and config.json as Hugging Face
writes it."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

import torch.nn.functional as F
from torch import Tensor

from d2v_pretrain.errors import ConfigError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "selu": F.selu,
}
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")


@dataclass(kw_only=True)
class Config:
    """Base of the family's configurations; by keyword only, checked at once and again by the model
    that it builds.

    ``num_labels``, ``id2label`` and ``label2id`` follow one another, also when set later. Whole
    numbers given for floats become floats and lists become tuples, because transformers 5 refuses
    what is not of the declared type.

    Args:
        hidden_size: D.
        num_hidden_layers: blocks.
        num_attention_heads: H, a divisor of D.
        intermediate_size: hidden width of the feed-forward part.
        hidden_act: its activation; ``gelu`` is the exact one.
        initializer_range: standard deviation of fresh linear layers and tables.
        output_hidden_states: models return every block's output unless told otherwise.
        output_attentions: models return attention probabilities unless told otherwise.
        return_dict: models return a ``ModelOutput``, else a tuple, unless told otherwise.
        num_labels: rows of a classifier; 2 by default.
        id2label: label names by index; ``LABEL_0`` ... by default.
        label2id: the reverse.
        problem_type: regression, single_label_classification or multi_label_classification; None:
            from the labels.
        architectures: class names that the weights beside this configuration were saved from.
        dtype: of those weights, as ``"float32"``.
        extra: what a config.json held beyond the documented fields; written back, never read.
    """

    model_type: ClassVar[str]
    # Ours or undeclared by Hugging Face: written only where they differ from the default.
    unusual: ClassVar[tuple[str, ...]] = ()
    # Computed from other fields; written, and dropped when read.
    derived: ClassVar[tuple[str, ...]] = ()

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
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
        if self.id2label is not None and self.num_labels not in (
            2,
            len(self.id2label),
        ):  # 2 is also "not given"
            self._refuse(
                "num_labels",
                f"must be the {len(self.id2label)} names of id2label",
                "leave one of them out",
            )
        names = _label_names(self.num_labels) if self.id2label is None else self.id2label
        names = {
            int(index): name for index, name in names.items()
        }  # JSON knows no whole numbers as keys
        vars(self).update(
            num_labels=len(names), id2label=names, label2id=self.label2id or _reversed(names)
        )
        self.validate()

    def __setattr__(self, name: str, value: Any) -> None:
        """Keep labels together; other settings are only checked when a model is built."""
        known = vars(self).get("label2id") is not None  # set last, so the object is complete
        if name == "num_labels" and known and value != self.num_labels:
            name, value = "id2label", _label_names(value)
        super().__setattr__(name, value)
        if name == "id2label" and known:
            vars(self)["num_labels"] = len(value)
            super().__setattr__("label2id", _reversed(value))

    @property
    def mlp_ratio(self) -> float:
        """``intermediate_size`` over ``hidden_size``, as ``Block`` takes it."""
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
            self._refuse(
                "num_labels",
                "leaves nothing to classify",
                "set num_labels=2 or problem_type=regression",
            )
        self._check()

    def _check(self) -> None:
        """The rules of one configuration."""

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
        """The rules that every transformer of the family has."""
        self._positive(
            "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"
        )
        if self.hidden_size % self.num_attention_heads:
            self._refuse(
                "hidden_size",
                f"must be a multiple of num_attention_heads, {self.num_attention_heads}",
            )
        for key in activations:
            if getattr(self, key) not in ACTIVATIONS:
                self._refuse(key, f"must be one of {', '.join(ACTIVATIONS)}")

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json: plain types, lists for tuples, every field that Hugging Face
        documents."""
        values = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("extra", "num_labels")
        }
        defaults = {f.name: f.default for f in fields(self)}
        kept = {k: v for k, v in values.items() if k not in self.unusual or v != defaults[k]}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()}
        return {
            **self.extra,
            **plain,
            **{k: getattr(self, k) for k in self.derived},
            "model_type": self.model_type,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], **overrides: Any) -> Self:
        """Read what ``to_dict`` or transformers wrote.

        Args:
            content: unknown keys are kept in ``extra``.
            overrides: fields to replace.

        Raises:
            ConfigError: another model's configuration, a field of the wrong type, an override that
                is no field.
        """
        names = [f.name for f in fields(cls) if f.name != "extra"]
        for key, value in overrides.items():
            if key not in names:
                near = ", ".join(difflib.get_close_matches(key, names, 3))
                raise ConfigError(
                    key, value, f"is no field of {cls.__name__}", near and f"nearest: {near}"
                )
        found = content["model_type"] if "model_type" in content else cls.model_type  # noqa: SIM401 (no .get on configs)
        if found != cls.model_type:
            raise ConfigError(
                "model_type",
                found,
                f"is not {cls.model_type}",
                "use the classes of that model type",
            )
        known = {k: v for k, v in content.items() if k in names}
        if (
            "torch_dtype" in content and known.get("dtype") is None
        ):  # its name before transformers 5
            known["dtype"] = content["torch_dtype"]
        if {"num_labels", "id2label"} & set(overrides):
            known = {
                k: v for k, v in known.items() if k not in ("num_labels", "id2label", "label2id")
            }
        unread = {"model_type", "torch_dtype", *names, *cls.derived}
        extra = {k: v for k, v in content.items() if k not in unread}
        return cls(**(known | overrides), extra=extra)

    @classmethod
    def from_pretrained(cls, directory: str | Path, **overrides: Any) -> Self:
        """``from_dict`` of ``directory/config.json``.

        Raises:
            ConfigError: there is no such file, or it is no JSON object.
        """
        path = Path(directory) / "config.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            remedy = (
                "name a directory with a config.json; nothing is fetched from Hugging Face's hub"
            )
            raise ConfigError(str(path), "missing", "is needed", remedy) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(str(path), error, "is no valid JSON", "copy the file again") from None
        if not isinstance(content, dict):
            raise ConfigError(str(path), type(content).__name__, "must hold a JSON object")
        return cls.from_dict(content, **overrides)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``directory/config.json``; the directory is made."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True)
        (Path(directory) / "config.json").write_text(text + "\n", encoding="utf-8")


def _label_names(count: int) -> dict[int, str]:
    return {index: f"LABEL_{index}" for index in range(count)}


def _reversed(names: dict[int, str]) -> dict[str, int]:
    return {name: index for index, name in names.items()}


def _checked(key: str, value: Any, hint: Any) -> Any:
    """``value`` as the declared type; a whole number may stand for a float, a sequence for a
    tuple."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        if (
            get_origin(option) is tuple
            and isinstance(value, Sequence)
            and not isinstance(value, str)
        ):
            return tuple(_checked(key, item, get_args(option)[0]) for item in value)
        if option is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if option is dict and isinstance(value, Mapping):
            return dict(value)
        if option in (bool, int, str) and type(value) is option:
            return value
    wanted = " or ".join(
        "nothing" if o is type(None) else getattr(o, "__name__", str(o)) for o in options
    )
    raise ConfigError(key, repr(value), f"must be of type {wanted}")
