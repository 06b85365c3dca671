"""Turns the words that a user types into the words that Hydra takes, and finds the recipe that they
mean.

A recipe is one file ``conf/recipe/<modality>_<objective>_<encoder>.yaml``. It chooses a file of
several groups and sets values on top of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from d2v_pretrain.errors import ConfigError, nearest
from d2v_pretrain.redaction import conceal_word

NAMING = ("modality", "objective", "encoder")  # the words that name a recipe together
USUAL = {"objective": "data2vec2", "encoder": "tiny"}  # used where these words are not typed


def config_folder() -> Path:
    """``conf/``: inside the package when installed from a wheel, beside it in a clone or an
    editable install."""
    package = Path(__file__).parent.parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "pretrain.yaml").is_file():
            return folder
    raise ConfigError(
        "conf", package, "has no configurations beside it", "install d2v_pretrain again"
    )


@dataclass(frozen=True)
class Folders:
    """Where configurations are looked for: ``conf/``, then the folders typed as ``conf=DIR``."""

    paths: tuple[Path, ...]

    def find(self, group: str, choice: str) -> Path | None:
        """The file behind ``group=choice``, None if there is none."""
        files = (folder / group / f"{choice}.yaml" for folder in self.paths)
        return next((file for file in files if file.is_file()), None)

    def choices(self, group: str) -> list[str]:
        """The names that may follow ``group=``, e.g. of ``masking`` or ``hydra/launcher``."""
        return sorted({p.stem for folder in self.paths for p in (folder / group).glob("*.yaml")})

    def groups(self) -> set[str]:
        """The groups that are folders directly below one of these folders."""
        return {p.name for folder in self.paths for p in folder.iterdir() if p.is_dir()}

    def recipe(self, name: str) -> Recipe:
        """Read a recipe.

        Raises:
            ConfigError: there is none of that name.
        """
        file = self.find("recipe", name)
        if file is None:
            known = self.choices("recipe")
            rule = f"is not there{nearest(name, known)}"
            raise ConfigError("recipe", name, rule, f"choose one of {', '.join(known)}")
        content = OmegaConf.load(file)
        assert isinstance(content, DictConfig)
        lines = OmegaConf.to_container(content.pop("defaults", OmegaConf.create([])))
        pairs = [next(iter(line.items())) for line in lines if isinstance(line, dict)]  # type: ignore[union-attr]
        return Recipe(name, file, {str(k).strip("/"): str(v) for k, v in pairs}, content)


@dataclass(frozen=True)
class Recipe:
    """A recipe's file: the choice of each group, and the values that it sets on top of them."""

    name: str
    file: Path
    groups: dict[str, str]
    values: DictConfig

    def check_fits(self, typed: dict[str, str]) -> None:
        """Refuse a typed ``modality=``, ``objective=`` or ``encoder=`` that this recipe is not
        for."""
        for key, value in typed.items():
            if value != self.groups[key]:
                rule = f"is not for {key}={value}: it is for {key}={self.groups[key]}"
                raise ConfigError("recipe", self.name, rule, f"leave out {key}=, or recipe=")


def for_hydra(typed: Sequence[str]) -> list[str]:
    """The words of a command line as Hydra takes them, without secrets (see ``redaction``).

    ``modality=``, ``objective=`` and ``encoder=`` become the recipe of that name, ``experiment=``
    is another word for ``recipe=``, ``data=folder`` becomes ``data=audio_folder``, ``probe=null``
    becomes ``~probe``, and ``conf=DIR`` goes into Hydra's search path. In a sweep (``-m``) the
    value of each may be a list with commas.

    Args:
        typed: the words.

    Raises:
        ConfigError: there is no such recipe or data, no modality, or a folder that is not there.
    """
    typed = [conceal_word(word) for word in typed]
    typed = [f"recipe={w[11:]}" if w.startswith("experiment=") else w for w in typed]
    folders = folders_of(typed)
    given = dict(word.split("=", 1) for word in typed if "=" in word and word[0] not in "-+~")
    naming = {key: given[key] for key in NAMING if key in given}
    if "recipe" in given:
        rows = [folders.recipe(name) for name in given["recipe"].split(",")]
        for row in rows:
            row.check_fits(naming)
    else:
        rows = [folders.recipe(name) for name in _names(naming, folders)]
    words = [f"recipe={','.join(row.name for row in rows)}", *_search_path(folders)]
    for word in typed:
        key, equals, value = word.partition("=")
        if key in (*NAMING, "recipe", "conf") and equals:
            continue
        if key == "data" and equals:
            word = f"data={','.join(_data(one, rows, folders) for one in value.split(','))}"
        elif value == "null" and key in folders.groups():
            word = f"~{key}"
        words.append(word)
    return words


def usual(modality: str) -> str:
    """The name of the recipe that ``modality=`` means if nothing else is typed."""
    return "_".join((modality, *USUAL.values()))


def folders_of(words: Iterable[str]) -> Folders:
    """``conf/`` and the folders typed as ``conf=DIR`` (several with commas)."""
    typed = [word[5:].strip("[]") for word in words if word.startswith("conf=")]
    parts = [part.strip("'") for value in typed for part in value.split(",")]
    added = [Path(part).expanduser() for part in parts if part]
    for folder in added:
        if not folder.is_dir():
            raise ConfigError("conf", folder, "is not a folder", "give one with groups as in conf/")
    return Folders((config_folder(), *(folder.absolute() for folder in added)))


def _search_path(folders: Folders) -> list[str]:
    added = [path.as_posix() for path in folders.paths[1:]]
    if not added:
        return []
    urls = ",".join(f"'file://{path}'" for path in added)
    return [f"hydra.searchpath=[{urls}]", f"conf=[{','.join(map(repr, added))}]"]


def _names(naming: dict[str, str], folders: Folders) -> list[str]:
    """The recipes that modality, objective and encoder name; in a sweep those of all
    combinations."""
    if "modality" not in naming:
        known = ", ".join(folders.choices("modality"))
        raise ConfigError("modality", "???", "has no value", f"choose one of {known}")
    named = list(product(*((naming.get(key) or USUAL[key]).split(",") for key in NAMING)))
    names, rows = ["_".join(part) for part in named], folders.choices("recipe")
    for name, part in zip(names, named, strict=True):
        if name in rows:
            continue
        for key, value in zip(NAMING, part, strict=True):
            if value not in (there := folders.choices(key)):
                rule = f"is not there{nearest(value, there)}"
                raise ConfigError(key, value, rule, f"choose one of {', '.join(there)}")
        alike = [row for row in rows if row.startswith(f"{part[0]}_")]
        rule = f"has no recipe for modality={part[0]} objective={part[1]}"
        raise ConfigError("encoder", part[2], rule, f"recipes of {part[0]}: {', '.join(alike)}")
    return names


def _data(value: str, rows: Sequence[Recipe], folders: Folders) -> str:
    """``folder`` -> ``audio_folder``: data that several modalities have are one file for each."""
    if folders.find("data", value) is not None:
        return value
    modalities = sorted({row.groups["modality"] for row in rows})
    files = folders.choices("data")
    if absent := [name for name in modalities if f"{name}_{value}" not in files]:
        usable = usable_data(absent[0], folders)
        rule = f"is nothing for modality={absent[0]}{nearest(value, usable)}"
        raise ConfigError("data", value, rule, f"choose one of {', '.join(usable)}")
    return f"{modalities[0]}_{value}" if len(modalities) == 1 else f"${{modality}}_{value}"


def usable_data(modality: str, folders: Folders) -> list[str]:
    """The names that may follow ``data=`` for a modality: data whose items its transform takes."""
    transform = _class(folders, "modality", modality, "transform._target_")
    names = [
        name
        for name in folders.choices("data")
        if _class(folders, "data", name, "_target_").holds == transform.takes
    ]
    return sorted(name.removeprefix(f"{modality}_") for name in names)


def _class(folders: Folders, group: str, choice: str, key: str) -> Any:
    """The class that a file of conf/ names."""
    file = folders.find(group, choice)
    assert file is not None
    return get_object(OmegaConf.select(OmegaConf.load(file), key))


def changed_choices(chosen: dict[str, Any], row: Recipe) -> list[str]:
    """The choices that differ from the recipe's own, for the name of a run."""
    changed = {
        g: str(chosen[g]) for g, usual in row.groups.items() if chosen.get(g, usual) != usual
    }
    if "data" in changed:
        changed["data"] = changed["data"].removeprefix(f"{row.groups['modality']}_")
    return list(changed.values())


def relative(path: Path) -> str:
    """A configuration file as a reader names it: ``conf/masking/block.yaml``."""
    home = config_folder()
    inside = path.is_relative_to(home)
    return (Path("conf") / path.relative_to(home)).as_posix() if inside else os.path.relpath(path)
