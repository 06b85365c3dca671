"""Gate: what a configuration from a file may build, and which places it may name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from d2v_pretrain.config.stored import at, leaves
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.weights.construct import construct

MODELS = ("d2v_pretrain.models",)
TRANSFORMS = ("datamodules.transforms",)
DATA = tuple(f"datamodules.{room}" for room in ("datasets", "public", "shards", "synthetic"))
_OURS = ("d2v_pretrain", "datamodules")
# Stored configurations name classes of these packages too; nothing builds them from a file.
_NEVER_BUILT = ("torch.optim", "lightning.pytorch")
_REMEDY = "use a file that this version wrote"
_TRUST = "type trust=PACKAGE if you know where its classes come from"
# Arguments of our classes that are paths, even if their value has no slash in it.
_PLACES = {"root", "labels", "tokenizer", "cache", "cache_folder", "skipped_path", "conf"}
_PLACE = re.compile(r"/|\\|^~|^pipe:|^\.\.$")
# What a constructor may raise for arguments of other types or sizes.
_FAILURES: tuple[type[Exception], ...] = (TypeError, ValueError, AssertionError, AttributeError)
_FAILURES += (LookupError, RuntimeError, ArithmeticError, MemoryError)


@dataclass(frozen=True)
class Gate:
    """What a file may name: our classes, and those of packages that the user has typed.

    Args:
        trust: these packages, by their dotted names.
    """

    trust: tuple[str, ...] = ()

    @classmethod
    def typed(cls, trust: str | None) -> Gate:
        """The gate for ``trust=PACKAGE,PACKAGE`` as the user types it.

        Raises:
            ConfigError: one of them is not the name of a package.
        """
        names = tuple(name.strip() for name in trust.split(",")) if trust else ()
        for name in names:
            if not all(part.isidentifier() for part in name.split(".")):
                remedy = "type names as in `import NAME`, separated by commas"
                raise ConfigError("trust", trust, "must be names of packages", remedy)
        return cls(names)

    def _class_of(self, target: Any, homes: tuple[str, ...]) -> type:
        """The class of a dotted name. Only modules of ``homes`` and of trusted packages are
        imported. ValueError: it names anything else, such as a function, or something that a module
        of ours has imported."""
        allowed = (*homes, *self.trust)
        if not isinstance(target, str) or not _is_in(target, allowed):
            raise ValueError(target)
        module, _, name = target.rpartition(".")
        found = getattr(import_module(module), name, None)
        if not (isinstance(found, type) and _is_in(f"{found.__module__}.{name}", allowed)):
            raise ValueError(target)
        return found

    def check(self, node: Any, homes: tuple[str, ...], file: Path, what: str) -> None:
        """Check each ``_target_`` in a node and below; nothing is built.

        Args:
            node: of plain values, see ``config.stored.plain``; objects in it are passed over.
            homes: packages of ours whose classes it may name.
            file: where the node comes from, for the message.
            what: what it describes ("encoder").

        Raises:
            ConfigError: it names anything but classes of these packages and of trusted ones, such
                as a function or something that a module of ours has imported; or it has another key
                for Hydra than ``_target_`` and ``_partial_``.
        """
        try:
            self._check(node, homes)
        except (ValueError, ImportError) as error:
            why = f"{error} is not a{'n' if what[0] in 'aeiou' else ''} {what} of this program"
            rule = f"describes no {what} that can be built ({why}); nothing in it was run"
            raise ConfigError("file", file, rule, _TRUST) from None

    def _check(self, node: Any, homes: tuple[str, ...]) -> None:
        if isinstance(node, list):
            for item in node:
                self._check(item, homes)
        if isinstance(node, dict):
            for key, value in node.items():
                if key == "_target_":
                    self._class_of(value, homes)
                elif str(key).startswith("_") and key != "_partial_":
                    raise ValueError(key)
                else:
                    self._check(value, homes)

    def _build(self, node: Any, homes: tuple[str, ...], file: Path, what: str) -> Any:
        """The object that a node describes; Hydra has no part in it."""
        self.check(node, homes, file, what)
        try:
            return construct(node, partial(self._class_of, homes=homes))
        except ConfigError:
            raise
        except _FAILURES as error:
            said = str(error).partition("\n")[0]
            rule = f"describes no {what} that can be built ({type(error).__name__}: {said})"
            raise ConfigError("file", file, rule, _REMEDY) from None

    def encoder(self, architecture: Any, file: Path) -> Encoder:
        """The untrained encoder that a node describes, of our models and trusted packages.

        Raises:
            ConfigError: see ``check``; or it cannot be built.
        """
        made = self._build(architecture, MODELS, file, "encoder")
        if not isinstance(made, Encoder):
            rule = f"describes no encoder that can be built, but a {type(made).__name__}"
            raise ConfigError("file", file, rule, _REMEDY)
        return made

    def transform(self, node: Any, file: Path) -> Any:
        """The transform that a node describes, with its dataset.

        Raises:
            ConfigError: see ``check``; or it cannot be built.
        """
        self.transform_class(node, file)
        return self._build(node, TRANSFORMS + DATA, file, "transform")

    def transform_class(self, node: Any, file: Path) -> Any:
        """The class of the transform that a node describes.

        Raises:
            ConfigError: see ``check``; or it is no transform.
        """
        self.check(node, TRANSFORMS + DATA, file, "transform")
        made = self._class_of(node["_target_"], TRANSFORMS) if "_target_" in node else None
        if not hasattr(made, "takes"):
            raise ConfigError("file", file, "describes no transform", _REMEDY)
        return made

    def prepared(self, settings: Mapping[str, Any], file: Path, *inputs: Any) -> Any:
        """The transform that a node describes, of inputs in memory.

        Args:
            settings: the node, without a dataset.
            file: where it comes from.
            inputs: arguments of ``datamodules.datasets.in_memory.in_memory``, without the kind.

        Raises:
            ConfigError: see ``transform``; or the inputs are of another kind.
        """
        in_memory = import_module("datamodules.datasets.in_memory")  # by name: see the import rule
        kind = self.transform_class(settings, file).takes
        dataset = in_memory.in_memory(kind, *inputs)
        return self.transform({**settings, "dataset": dataset}, file)

    def check_names(self, content: Mapping[str, Any], own: Any, file: Path) -> None:
        """Check every class that a whole stored configuration names, the parts that are not built
        included, so that a file that was tampered with is refused by every command.

        Args:
            content: the configuration.
            own: configuration in the run's folder that vouches for equal values, or None.
            file: where the configuration comes from.

        Raises:
            ConfigError: the first name that is neither ours nor trusted nor vouched for.
        """
        for path, value in leaves(content):
            if path[-1] != "_target_" or at(own, path) == value:
                continue
            if not _is_in(str(value), (*_OURS, *_NEVER_BUILT, *self.trust)):
                rule = f"stands in {file} and is not of this program; nothing in it was run"
                raise ConfigError(".".join(map(str, path)), value, rule, _TRUST)


ONLY_OURS = Gate()


def check_places(
    node: Any, own: Any, folder: Path, file: Path, prefix: tuple[str, ...] = ()
) -> None:
    """Check that paths lie in the run's folder; others, addresses and commands (``pipe:``) must be
    vouched for.

    Args:
        node: of plain values.
        own: configuration in the run's folder that vouches for equal values, or None.
        folder: of the run.
        file: where the node comes from.
        prefix: place of the node in that configuration.

    Raises:
        ConfigError: the first value that is not allowed, and what to type.
    """
    for path, value in leaves(node, prefix):
        names = {part for part in path if isinstance(part, str)}
        is_place = isinstance(value, str) and value and (_PLACE.search(value) or names & _PLACES)
        asks = is_place and not _is_inside(value, folder)
        asks = asks or (path[-1] == "download" and value is True)
        if not asks or at(own, path) == value:
            continue
        rule = f"stands in {file}; a file may not name a command, an address or a path outside"
        remedy = "type data.root=… with what you mean, or run=NAME of a run of your own in runs/, "
        remedy += "whose config.yaml says the same"
        raise ConfigError(".".join(map(str, path)), value, rule, remedy)


def gate_of(typed: Mapping[str, Any]) -> Gate:
    """The gate of a configuration that the user has typed: it lets a file name the same classes for
    the encoder and the data."""
    parts = [typed.get(name) for name in ("architecture", "transform")]
    named = (str(value) for path, value in leaves(parts) if path[-1] == "_target_")
    modules = {name.rpartition(".")[0] for name in named if not _is_in(name, _OURS)}
    return Gate(tuple(sorted(modules)))


def _is_inside(value: str, folder: Path) -> bool:
    if "://" in value or value.startswith(("pipe:", "~")):
        return False
    return Path(value).resolve().is_relative_to(folder.resolve())


def _is_in(name: str, packages: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{package}.") for package in packages)
