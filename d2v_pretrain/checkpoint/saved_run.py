"""Run: a run on disk, finished or not, with its checkpoint, configuration and encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from d2v_pretrain.checkpoint import file as checkpoint
from d2v_pretrain.config import stored
from d2v_pretrain.config.compose import load
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.rng import seed_default
from d2v_pretrain.weights.foreign import ForeignWeights
from d2v_pretrain.weights.gate import MODELS, ONLY_OURS, TRANSFORMS, Gate, check_places

PARTS = {"student": "objective.student.", "teacher": "objective.teacher.encoder."}
RUNS = Path("runs")  # holds the runs of the user


@dataclass(frozen=True)
class Run:
    """A run at one of its checkpoints. What its stored configuration names passes ``gate``.

    Args:
        folder: the run's folder.
        file: the checkpoint.
        gate: decides which classes the configuration may name.
        typed: the settings of this run, if the user has typed them in this process. Otherwise the
            file ``config.yaml`` of a folder in ``runs/`` stands for what the user has typed.
    """

    folder: Path
    file: Path
    gate: Gate = ONLY_OURS
    typed: Mapping[str, Any] | None = None

    @property
    def step(self) -> int:
        """Number of optimizer steps done."""
        return checkpoint.step_of(self.file)

    @cached_property
    def content(self) -> dict[str, Any]:
        """The configuration that the checkpoint was made with, as plain values. If the run's folder
        was moved, paths into it are changed accordingly.

        Raises:
            ConfigError: it is not of plain values, or names a class that is not allowed.
        """
        content = self._here(stored.plain(checkpoint.config_of(self.file), self.file))
        self.gate.check_names(content, self.own, self.file)
        return content

    @cached_property
    def own(self) -> Mapping[str, Any] | None:
        """What the user has typed for this run, as far as it is known; None if nothing is."""
        if self.typed is not None:
            return self._here(dict(self.typed))
        file = self.folder / "config.yaml"
        if self.folder.absolute().parent != RUNS.absolute() or not file.is_file():
            return None
        return self._here(stored.plain(file.read_text("utf-8", "replace"), file))

    def _here(self, content: dict[str, Any]) -> dict[str, Any]:
        before, now = str(content.get("folder")), self.folder.as_posix()
        return stored.moved(content, before, now)

    @cached_property
    def cfg(self) -> DictConfig:
        """``content`` for reading with dots. No object may be made of it: see ``gate``."""
        return stored.literal(self.content)

    def part(self, name: str) -> dict[str, Any]:
        """A node of the configuration, as plain values.

        Raises:
            ConfigError: there is none.
        """
        node = self.content.get(name)
        if not isinstance(node, dict):
            rule = f"has a configuration without {name}"
            raise ConfigError("file", self.file, rule, "use a file that this program wrote")
        return dict(node)

    @property
    def architecture(self) -> dict[str, Any]:
        """The configuration of the encoder, as plain values."""
        return self.part("architecture")

    def untrained(self) -> Encoder:
        """The encoder that the run started from; the same weights for the same seed.

        Raises:
            ConfigError: the run's encoder is of classes that are not ours.
        """
        seed = self.content.get("seed")
        if not isinstance(seed, int):
            raise ConfigError("seed", seed, f"in {self.file} must be a whole number")
        seed_default(seed, torch.device("cpu"))
        return self.gate.encoder(self.architecture, self.file)

    def encoder(self, which: str) -> Encoder:
        """The student or the teacher of the checkpoint, on the CPU, in evaluation mode.

        Raises:
            ConfigError: the file is damaged, or the run's encoder is of classes that are not ours.
        """
        encoder = self.gate.encoder(self.architecture, self.file)
        encoder.load_state_dict(weights(self.file, which).fitted(encoder))
        return encoder.eval()

    def transform(self, typed: Sequence[str], folder: Path) -> Any:
        """The run's data, or other data of its modality, prepared as in the run.

        Args:
            typed: ``data=…`` and ``data.key=value`` as for training (``data=folder`` may be left
                out); empty for the data that the run was trained on.
            folder: the list of files that cannot be used is written here.

        Raises:
            ConfigError, or one of Hydra's errors: one of the words is not a setting of these data,
                or the configuration names classes or places that a file may not name.
        """
        # Before data are read, which may take long.
        self.gate.check(self.architecture, MODELS, self.file, "encoder")
        settings = self.part("transform")
        if typed:
            settings.pop("dataset", None)
        check_places(settings, self.own, self.folder, self.file, ("transform",))
        if typed:
            self._check_tokenizer(settings)
            self.gate.check(settings, TRANSFORMS, self.file, "transform")
            settings["dataset"] = instantiate(self._other(typed, folder).data, _convert_="all")
        return self.gate.transform(settings, self.file)

    def _other(self, typed: Sequence[str], folder: Path) -> DictConfig:
        """The configuration of other data of the run's modality."""
        recipe, conf = str(self.content.get("recipe")), self.content.get("conf") or []
        check_places(conf, self.own, self.folder, self.file, ("conf",))
        if not recipe.replace("-", "_").isidentifier():
            raise ConfigError("recipe", recipe, f"in {self.file} is no name of a recipe")
        choice = [] if any(word.startswith("data=") for word in typed) else ["data=folder"]
        words = [f"conf={','.join(conf)}"] if conf else []
        other = load([f"recipe={recipe}", *words, *choice, *typed, f"folder={folder}"])
        if missing := OmegaConf.missing_keys(other.data):
            key = f"data.{min(missing)}"
            raise ConfigError(key, "???", "has no value", f"type {key}=…")
        return other

    @staticmethod
    def _check_tokenizer(settings: Mapping[str, Any]) -> None:
        """Refuse to train a tokenizer on other data than the run's."""
        trained = settings.get("cache")
        if trained and not (settings.get("tokenizer") or Path(trained).exists()):
            rule = "is not there, and one trained on other data would give other ids"
            raise ConfigError("tokenizer", trained, rule, "copy it from where the run was made")

    def preparation(self) -> dict[str, Any]:
        """The configuration of the run's transform without its dataset, for preparing other
        inputs, such as arrays in memory, as the run prepared its data.

        Raises:
            ConfigError: the tokenizer that the run trained is gone, and cannot be trained again
                because its data are gone too; or it lies where a file may not point to.
        """
        settings = self.part("transform")
        settings.pop("dataset", None)
        check_places(settings, self.own, self.folder, self.file, ("transform",))
        if "join" in settings:
            settings["join"] = False  # each input stays an item of its own
        trained = settings.get("cache")
        if trained and not settings.get("tokenizer") and not Path(trained).exists():
            own = self.transform([], self.folder)
            # ``vocabulary`` reads the tokenizer beside the shards, or trains it again.
            settings["vocab_size"] = own.vocabulary.size
            settings["tokenizer"] = own.tokenizer and str(own.tokenizer)
        return settings

    def report(self, name: str) -> Any:
        """The content of a JSON file in the run's folder; None if it does not exist.

        Raises:
            ConfigError: it is not JSON.
        """
        file = self.folder / name
        try:
            return json.loads(file.read_text("utf-8")) if file.exists() else None
        except ValueError as error:
            raise ConfigError("file", file, f"is not JSON ({error})", "move it away") from None


def weights(file: Path, which: str) -> ForeignWeights:
    """The student's or teacher's encoder in one of our checkpoints."""
    prefix, state = PARTS[which], checkpoint.read(file).get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        rule = "holds no weights under state_dict"
        raise ConfigError("checkpoint", file, rule, "use a file that this program wrote")
    tensors = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not tensors:
        rule = f"is not in {file}: fine-tuning has no teacher"
        raise ConfigError("which", which, rule, "type which=student")
    what = f"the {which} of our checkpoint at step {checkpoint.step_of(file):,}"
    return ForeignWeights(
        file, what, tensors, {name.removeprefix(prefix): name for name in tensors}
    )


def find(name: str, step: int | None = None, gate: Gate = ONLY_OURS, runs: Path = RUNS) -> Run:
    """The newest undamaged checkpoint of a run, or the one that was saved at ``step``.

    Args:
        name: a run's name, or the path of its folder.
        step: optimizer step of the checkpoint; None for the newest.
        gate: decides which classes the stored configuration may name.
        runs: the folder that holds all runs.

    Raises:
        ConfigError: there is no such run (the message suggests similar names), all of its
            checkpoints are damaged, or none was saved at that step.
    """
    folder = Path(name) if "/" in name else runs / name
    if not folder.is_dir():
        folders = [path for path in runs.iterdir() if path.is_dir()] if runs.is_dir() else []
        there = sorted(path.name for path in folders)
        near = get_close_matches(name, there, 3, 0.4) or there[:3]
        none = f"there is no run in {runs.absolute()}"
        remedy = f"the nearest are {', '.join(near)}" if near else none
        raise ConfigError("run", name, f"is no folder in {runs}/", remedy)
    if step is not None:
        files = {checkpoint.step_of(f): f for f in sorted((folder / "checkpoints").glob("*.ckpt"))}
        if step not in files:
            kept = ", ".join(str(s) for s in sorted(files) if s >= 0) or "none"
            raise ConfigError("step", step, f"has no checkpoint in {folder}", f"there are {kept}")
        return Run(folder, files[step], gate)
    newest, rejected = checkpoint.newest_valid(folder / "checkpoints")
    if newest is None:
        damaged = "; ".join(f"{path.name} {reason}" for path, reason in rejected)
        rule = f"has no checkpoint yet in {folder / 'checkpoints'}"
        rule = f"has no whole one: {damaged}" if damaged else rule
        raise ConfigError("run", name, rule, "let it train until it has saved one")
    return Run(folder, newest, gate)
