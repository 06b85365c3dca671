"""A run on disk, finished or going on: its newest checkpoint, configuration and encoder."""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from d2v_pretrain.checkpoint import file as checkpoint
from d2v_pretrain.config.compose import load
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.weights import bundle
from d2v_pretrain.weights.construct import construct
from d2v_pretrain.weights.foreign import ForeignWeights

_CHOICES = {"architecture", "encoder", "experiment", "objective"}  # what decides on an encoder
PARTS = {"student": "objective.student.", "teacher": "objective.teacher.encoder."}


@dataclass(frozen=True)
class Run:
    """A run at one of its checkpoints.

    Args:
        folder: the run's.
        file: the checkpoint.
    """

    folder: Path
    file: Path

    @property
    def step(self) -> int:
        """Updates done."""
        return checkpoint.step_of(self.file)

    @cached_property
    def cfg(self) -> DictConfig:
        """The configuration that the checkpoint was made with; paths into the run's folder follow
        it if it moved."""
        text = checkpoint.config_of(self.file)
        then, now = OmegaConf.create(text).folder, self.folder.as_posix()
        cfg = OmegaConf.create(text.replace(f"{then}/", f"{now}/"))
        assert isinstance(cfg, DictConfig)
        return cfg

    @property
    def architecture(self) -> dict[str, Any]:
        """How the encoder is constructed, as plain types."""
        plain = OmegaConf.to_container(self.cfg.architecture, resolve=True)
        assert isinstance(plain, dict)
        return plain  # type: ignore[return-value]

    def encoder(self, which: str) -> Encoder:
        """The student or the teacher of the checkpoint, on the CPU, in evaluation mode.

        Raises:
            ConfigError: the file is damaged, or the run's encoder is of classes that are not ours.
        """
        try:
            encoder = construct(self.architecture, bundle.model_class)
        except ValueError as error:
            raise ConfigError(
                "run", self.folder, f"has an encoder of foreign classes ({error})"
            ) from None
        encoder.load_state_dict(weights(self.file, which).fitted(encoder))
        return encoder.eval()

    def transform(self, typed: Sequence[str], folder: Path) -> Any:
        """The run's data, or other data of its modality, as the run prepares them.

        Args:
            typed: ``data=…`` and ``data.key=value`` as for training, ``data=folder`` if only a root
                is given; none for the run's own.
            folder: where files that cannot be used are listed.

        Raises:
            ConfigError, or one of Hydra's: a word that is no setting of such data.
        """
        cfg = copy.deepcopy(self.cfg)
        if not typed:
            return instantiate(cfg.transform, _convert_="all")
        if "cache" in cfg.transform and not (
            cfg.transform.tokenizer or Path(cfg.transform.cache).exists()
        ):
            rule = "is not there, and one trained on other data would give other ids"
            raise ConfigError(
                "tokenizer", cfg.transform.cache, rule, "copy it from where the run was made"
            )
        choice = [] if any(word.startswith("data=") for word in typed) else ["data=folder"]
        other = load([f"modality={cfg.modality}", *choice, *typed, f"folder={folder}"])
        if missing := OmegaConf.missing_keys(other.data):
            raise ConfigError(
                f"data.{min(missing)}", "???", "has no value", f"type data.{min(missing)}=…"
            )
        cfg.transform.dataset = OmegaConf.to_container(other.data, resolve=True)
        return instantiate(cfg.transform, _convert_="all")

    def preparation(self) -> dict[str, Any]:
        """Settings of the run's transform without its data: enough to prepare inputs that someone
        has in hand.

        Raises:
            ConfigError: the tokenizer that was trained on the run's data, or these data, are gone.
        """
        settings = OmegaConf.to_container(self.cfg.transform, resolve=True)
        assert isinstance(settings, dict)
        del settings["dataset"]
        if "join" in settings:
            settings["join"] = False  # items in hand stay apart
        trained = settings.get("cache")
        if trained and not settings["tokenizer"] and not Path(trained).exists():
            own = instantiate(self.cfg.transform, _convert_="all")
            settings["vocab_size"] = own.vocabulary.size  # reads or trains it, as in training
            settings["tokenizer"] = own.tokenizer and str(own.tokenizer)
        return settings  # type: ignore[return-value]

    @staticmethod
    def transform_class(target: str) -> Any:
        """The transform by the name in ``preparation``."""
        return get_object(target)

    def report(self, name: str) -> Any:
        """The content of a JSON file in the run's folder, None if it is not there."""
        file = self.folder / name
        return json.loads(file.read_text()) if file.exists() else None


def adopt(cfg: DictConfig) -> None:
    """Take encoder and preparation of the inputs from the checkpoint of ours in ``init_from``, so
    that nobody types them twice.

    What is typed counts: a single setting beside the checkpoint's, a choice of ``_CHOICES`` in
    place of its encoder.

    Raises:
        ConfigError: it is of another modality.
    """
    if cfg.init_from is None or checkpoint.step_of(file := Path(cfg.init_from)) < 0:
        return
    old = Run(file.absolute().parent.parent, file).cfg
    if old["modality"] != cfg["modality"]:
        raise ConfigError(
            "init_from", file, f"is of modality={old['modality']}", "type that modality"
        )
    words = [word.lstrip("+~").partition("=")[0] for word in HydraConfig.get().overrides.task]
    typed = {
        word: OmegaConf.select(cfg, word)
        for word in words
        if word.startswith(("architecture.", "transform."))
    }
    if not {word.partition(".")[0] for word in words if word not in typed} & _CHOICES:
        cfg.architecture = old.architecture
    kept = {
        key: value
        for key, value in old.transform.items()
        if key not in ("_target_", "dataset", "seed", "cache")
    }
    if "cache" in old.transform and old.transform.tokenizer is None:
        kept["tokenizer"] = old.transform.cache  # that was trained on the run's data
    for key, value in {
        **{f"transform.{key}": value for key, value in kept.items()},
        **typed,
    }.items():
        OmegaConf.update(cfg, key, value)


def weights(file: Path, which: str) -> ForeignWeights:
    """The student's or teacher's encoder in one of our checkpoints."""
    prefix = PARTS[which]
    tensors = {
        name: t
        for name, t in checkpoint.read(file)["state_dict"].items()
        if name.startswith(prefix)
    }
    if not tensors:
        raise ConfigError(
            "which", which, f"is not in {file}: fine-tuning has no teacher", "type which=student"
        )
    what = f"the {which} of our checkpoint at step {checkpoint.step_of(file):,}"
    return ForeignWeights(
        file, what, tensors, {name.removeprefix(prefix): name for name in tensors}
    )


def find(name: str, step: int | None = None, runs: Path = Path("runs")) -> Run:
    """The newest whole checkpoint of a run, or the one of a step.

    Args:
        name: a run's name, or the path of its folder.
        step: which one; the newest if None.

    Raises:
        ConfigError: no such run (with the nearest names), none of its checkpoints is whole, or none
            is of that step.
    """
    folder = Path(name) if "/" in name else runs / name
    if not folder.is_dir():
        there = (
            sorted(path.name for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else []
        )
        near = difflib.get_close_matches(name, there, 3, 0.4) or there[:3]
        remedy = (
            f"the nearest are {', '.join(near)}"
            if near
            else f"there is no run in {runs.absolute()}"
        )
        raise ConfigError("run", name, f"is no folder in {runs}/", remedy)
    if step is not None:
        return Run(folder, _of_step(folder, step))
    newest, rejected = checkpoint.newest_valid(folder / "checkpoints")
    if newest is None:
        damaged = "; ".join(f"{path.name} {reason}" for path, reason in rejected)
        rule = (
            f"has no checkpoint yet in {folder / 'checkpoints'}"
            if not damaged
            else f"has no whole one: {damaged}"
        )
        raise ConfigError("run", name, rule, "let it train until it has saved one")
    return Run(folder, newest)


def _of_step(folder: Path, step: int) -> Path:
    files = sorted((folder / "checkpoints").glob("*.ckpt"), key=checkpoint.step_of)
    for file in files:
        if checkpoint.step_of(file) == step:
            return file
    kept = ", ".join(str(s) for s in sorted({checkpoint.step_of(file) for file in files}) if s >= 0)
    raise ConfigError("step", step, f"has no checkpoint in {folder}", f"there are {kept or 'none'}")
