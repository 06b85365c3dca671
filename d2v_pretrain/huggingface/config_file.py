"""Configurations as files and dicts: config.json, and the methods that transformers has for it."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from d2v_pretrain.errors import ConfigError, MissingFile, nearest
from d2v_pretrain.huggingface.hub_cache import HUB_OPTIONS, model_folder

logger = logging.getLogger(__name__)


class ConfigFile:
    """The methods of a configuration that read and write it."""

    model_type: ClassVar[str]
    # Fields that Hugging Face does not have or declare: written only where they differ from the
    # default.
    unusual: ClassVar[tuple[str, ...]] = ()
    # Properties computed from other fields: written, and ignored when read.
    derived: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **settings: Any) -> None: ...

    @classmethod
    def names(cls) -> list[str]:
        """The names of the documented fields."""
        return [f.name for f in fields(cls)]  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json: every documented field and every attribute that was set, as
        plain types. Attributes whose names begin with ``_`` are left out."""
        set_later = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        content: dict[str, Any] = set_later
        for f in fields(self):  # type: ignore[arg-type]
            if f.name in self.unusual and getattr(self, f.name) == f.default:
                del content[f.name]
        content.pop("num_labels")  # id2label says it
        derived = {key: getattr(self, key) for key in self.derived}
        return _plain(content | derived | {"model_type": self.model_type})

    def to_diff_dict(self) -> dict[str, Any]:
        """Those items of ``to_dict`` that differ from a configuration by default."""
        usual = type(self)().to_dict()
        content = self.to_dict().items()
        return {k: v for k, v in content if k == "model_type" or k not in usual or v != usual[k]}

    def to_json_string(self, use_diff: bool = True) -> str:
        """``to_diff_dict``, or ``to_dict`` with ``use_diff=False``, as JSON.

        Raises:
            ConfigError: an activation is a function, which has no name to write.
        """
        content = self.to_diff_dict() if use_diff else self.to_dict()
        for key in (key for key, value in content.items() if callable(value)):
            remedy = "choose an activation by its name before you save"
            raise ConfigError(key, content[key], "is a function, which a file cannot hold", remedy)
        return json.dumps(content, indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | Path, use_diff: bool = True) -> None:
        """Write ``to_json_string`` into a file."""
        Path(json_file_path).write_text(self.to_json_string(use_diff), encoding="utf-8")

    def save_pretrained(
        self, save_directory: str | Path, push_to_hub: bool = False, **unused: Any
    ) -> None:
        """Write ``save_directory/config.json``; the directory is made.

        Raises:
            ConfigError: ``push_to_hub``; see also ``to_json_string``.
        """
        if push_to_hub:
            remedy = "upload the directory with the command hf"
            raise ConfigError("push_to_hub", True, "is not done here", remedy)
        text = self.to_json_string(use_diff=False)
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        (Path(save_directory) / "config.json").write_text(text, encoding="utf-8")

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Set the attributes of these names."""
        for key, value in config_dict.items():
            setattr(self, key, value)

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **overrides: Any
    ) -> Any:
        """Read what ``to_dict`` or transformers wrote.

        Args:
            config_dict: unknown keys become attributes.
            return_unused_kwargs: return (configuration, overrides that are no fields); otherwise
                these become attributes, with a warning if they look misspelt.
            overrides: fields to replace.

        Raises:
            ConfigError: it is another model's configuration, or a field has the wrong type.
        """
        content = dict(config_dict)
        found = content.pop("model_type", cls.model_type)
        if found != cls.model_type:
            rule, remedy = f"is not {cls.model_type}", "use the classes of that model type"
            raise ConfigError("model_type", found, rule, remedy)
        if "torch_dtype" in overrides:
            overrides["dtype"] = overrides.pop("torch_dtype")
        if {"num_labels", "id2label"} & set(overrides):
            for key in ("num_labels", "id2label", "label2id"):
                content.pop(key, None)
        names = {*cls.names(), "torch_dtype"}  # the name of dtype before transformers 5
        known = {key: value for key, value in content.items() if key in names}
        used = {key: value for key, value in overrides.items() if key in names}
        config = cls(**(known | used))
        config.update({k: v for k, v in content.items() if k not in {*names, *cls.derived}})
        unused = {key: value for key, value in overrides.items() if key not in names}
        if return_unused_kwargs:
            return config, unused
        config.keep(unused)
        return config

    def keep(self, settings: Mapping[str, Any]) -> None:
        """Set attributes that are no fields; a warning names the field that may have been meant."""
        names = self.names()
        for key, value in settings.items():
            if meant := nearest(key, names):
                text = "%s is no setting of %s%s: it is kept as an attribute and has no effect."
                logger.warning(text, key, type(self).__name__, meant)
            setattr(self, key, value)

    @classmethod
    def from_json_file(cls, json_file: str | Path) -> Self:
        """Read a JSON file; see ``from_pretrained``."""
        return cls.from_dict(_read(Path(json_file)))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **overrides: Any) -> Any:
        """Read ``config.json``.

        Args:
            pretrained_model_name_or_path: a directory with that file, the file itself, or a model's
                name in the local hub cache.
            overrides: see ``from_dict``; also ``hub_cache.HUB_OPTIONS``.

        Raises:
            MissingFile: there is no such file.
            ConfigError: it is no JSON object; see also ``from_dict``.
        """
        options = {key: overrides.pop(key) for key in HUB_OPTIONS & overrides.keys()}
        path = model_folder(pretrained_model_name_or_path, **options)
        content = _read(path if path.is_file() else path / "config.json")
        result = cls.from_dict(content, **overrides)
        config = result[0] if isinstance(result, tuple) else result
        config._name_or_path = str(pretrained_model_name_or_path)
        return result


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        remedy = "name a directory that has one, or a model that lies in the local hub cache"
        remedy += " (nothing is downloaded)"
        raise MissingFile(str(path), "missing", "is needed", remedy) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), error, "is no valid JSON", "copy the file again") from None
    if not isinstance(content, dict):
        raise ConfigError(str(path), type(content).__name__, "must hold a JSON object")
    return content


def _plain(value: Any) -> Any:
    """A copy with lists for tuples and names for dtypes."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return copy.copy(value)
