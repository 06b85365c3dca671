"""Run: a run on disk, finished or not, with its checkpoint, configuration and encoder."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from d2v_pretrain.checkpoint import file as checkpoint
from d2v_pretrain.config.compose import load
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.weights import bundle
from d2v_pretrain.weights.construct import construct
from d2v_pretrain.weights.foreign import ForeignWeights

PARTS = {"student": "objective.student.", "teacher": "objective.teacher.encoder."}


@dataclass(frozen=True)
class Run:
    """A run at one of its checkpoints.

    Args:
        folder: the run's folder.
        file: the checkpoint.
        trust: packages besides ours whose classes the encoder may be made of.
    """

    folder: Path
    file: Path
    trust: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """Number of optimizer steps done."""
        return checkpoint.step_of(self.file)

    @cached_property
    def cfg(self) -> DictConfig:
        """The configuration that the checkpoint was made with. If the run's folder was moved, paths
        into it are changed accordingly.
        """
        text = checkpoint.config_of(self.file)
        then, now = OmegaConf.create(text).folder, self.folder.as_posix()
        cfg = OmegaConf.create(text.replace(f"{then}/", f"{now}/"))
        assert isinstance(cfg, DictConfig)
        return cfg

    @property
    def architecture(self) -> dict[str, Any]:
        """The configuration of the encoder, as plain types."""
        plain = OmegaConf.to_container(self.cfg.architecture, resolve=True)
        assert isinstance(plain, dict)
        return plain  # type: ignore[return-value]

    def encoder(self, which: str) -> Encoder:
        """The student or the teacher of the checkpoint, on the CPU, in evaluation mode.

        Raises:
            ConfigError: the file is damaged, or the run's encoder is of classes that are not ours.
        """
        try:
            trusted = partial(bundle.model_class, trust=self.trust)
            encoder = construct(self.architecture, trusted)
        except ValueError as error:
            rule = f"has an encoder of foreign classes ({error})"
            remedy = "type trust=PACKAGE if you know where they come from"
            raise ConfigError("run", self.folder, rule, remedy) from None
        encoder.load_state_dict(weights(self.file, which).fitted(encoder))
        return encoder.eval()

    def transform(self, typed: Sequence[str], folder: Path) -> Any:
        """The run's data, or other data of its modality, prepared as in the run.

        Args:
            typed: ``data=…`` and ``data.key=value`` as for training (``data=folder`` may be left
                out); empty for the data that the run was trained on.
            folder: the list of files that cannot be used is written here.

        Raises:
            ConfigError, or one of Hydra's errors: one of the words is not a setting of these data.
        """
        cfg = copy.deepcopy(self.cfg)
        if not typed:
            return instantiate(cfg.transform, _convert_="all")
        if "cache" in cfg.transform and not (
            cfg.transform.tokenizer or Path(cfg.transform.cache).exists()
        ):
            rule = "is not there, and one trained on other data would give other ids"
            remedy = "copy it from where the run was made"
            raise ConfigError("tokenizer", cfg.transform.cache, rule, remedy)
        choice = [] if any(word.startswith("data=") for word in typed) else ["data=folder"]
        conf = [f"conf={','.join(cfg.conf)}"] if cfg.conf else []
        other = load([f"recipe={cfg.recipe}", *conf, *choice, *typed, f"folder={folder}"])
        if missing := OmegaConf.missing_keys(other.data):
            key = f"data.{min(missing)}"
            raise ConfigError(key, "???", "has no value", f"type {key}=…")
        cfg.transform.dataset = OmegaConf.to_container(other.data, resolve=True)
        return instantiate(cfg.transform, _convert_="all")

    def preparation(self) -> dict[str, Any]:
        """The configuration of the run's transform without its dataset, for preparing other
        inputs, such as arrays in memory, as the run prepared its data.

        Raises:
            ConfigError: the tokenizer that the run trained is gone, and cannot be trained again
                because its data are gone too.
        """
        settings = OmegaConf.to_container(self.cfg.transform, resolve=True)
        assert isinstance(settings, dict)
        del settings["dataset"]
        if "join" in settings:
            settings["join"] = False  # each input stays an item of its own
        trained = settings.get("cache")
        if trained and not settings["tokenizer"] and not Path(trained).exists():
            own = instantiate(self.cfg.transform, _convert_="all")
            # ``vocabulary`` reads the tokenizer beside the shards, or trains it again.
            settings["vocab_size"] = own.vocabulary.size
            settings["tokenizer"] = own.tokenizer and str(own.tokenizer)
        return settings  # type: ignore[return-value]

    @staticmethod
    def transform_class(target: str) -> Any:
        """The transform's class, by the name that ``preparation`` has under ``_target_``."""
        return get_object(target)

    def report(self, name: str) -> Any:
        """The content of a JSON file in the run's folder; None if it does not exist."""
        file = self.folder / name
        return json.loads(file.read_text()) if file.exists() else None


def weights(file: Path, which: str) -> ForeignWeights:
    """The student's or teacher's encoder in one of our checkpoints."""
    prefix, state = PARTS[which], checkpoint.read(file)["state_dict"]
    tensors = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not tensors:
        rule = f"is not in {file}: fine-tuning has no teacher"
        raise ConfigError("which", which, rule, "type which=student")
    what = f"the {which} of our checkpoint at step {checkpoint.step_of(file):,}"
    return ForeignWeights(
        file, what, tensors, {name.removeprefix(prefix): name for name in tensors}
    )


def find(
    name: str, step: int | None = None, trust: str | None = None, runs: Path = Path("runs")
) -> Run:
    """The newest undamaged checkpoint of a run, or the one that was saved at ``step``.

    Args:
        name: a run's name, or the path of its folder.
        step: optimizer step of the checkpoint; None for the newest.
        trust: packages besides ours whose classes the encoder may be made of, with commas.
        runs: the folder that holds all runs.

    Raises:
        ConfigError: there is no such run (the message suggests similar names), all of its
            checkpoints are damaged, or none was saved at that step.
    """
    packages = tuple(trust.split(",")) if trust else ()
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
        return Run(folder, files[step], packages)
    newest, rejected = checkpoint.newest_valid(folder / "checkpoints")
    if newest is None:
        damaged = "; ".join(f"{path.name} {reason}" for path, reason in rejected)
        rule = f"has no checkpoint yet in {folder / 'checkpoints'}"
        rule = f"has no whole one: {damaged}" if damaged else rule
        raise ConfigError("run", name, rule, "let it train until it has saved one")
    return Run(folder, newest, packages)
