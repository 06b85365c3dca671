"""Tasks: what a run is for. ``conf/task/NAME.yaml`` chooses one of these classes as ``task``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from d2v_pretrain.checkpoint import file as checkpoint
from d2v_pretrain.checkpoint.saved_run import Run
from d2v_pretrain.config.recipes import usual
from d2v_pretrain.config.rules import METHOD_RULES
from d2v_pretrain.config.stored import checked
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.training.log import log
from d2v_pretrain.weights.gate import MODELS, TRANSFORMS, Gate, check_places


class Task:
    """What differs between runs besides the objective that they train; by default nothing does.

    The runner calls ``before``, ``check``, ``is_finished`` and ``after_data`` in this order. The
    configuration of a task names the objective, the datamodule's transform and the callbacks.
    """

    def before(self, cfg: DictConfig) -> None:
        """Complete the configuration before it is checked."""

    def check(self, cfg: DictConfig) -> None:
        """Check the rules between settings that hold for this task alone.

        Raises:
            ConfigError: a rule is broken.
        """

    def reports(self, cfg: DictConfig) -> list[str]:
        """Files that the callbacks of this task write into the run's folder at its end."""
        return []

    def is_finished(self, cfg: DictConfig, folder: Path, step: int) -> bool:
        """Whether a run in ``folder`` with a checkpoint of ``step`` has nothing left to do."""
        written = all((folder / report).exists() for report in self.reports(cfg))
        return step >= cfg.steps and written

    def after_data(self, cfg: DictConfig, datamodule: Any) -> None:
        """Complete the configuration by what only the data can tell, before the model is built."""


class Pretraining(Task):
    """Self-supervised pretraining of an encoder, with a probe of its frozen features at the end."""

    def check(self, cfg: DictConfig) -> None:
        for rule in METHOD_RULES:
            rule(cfg)

    def reports(self, cfg: DictConfig) -> list[str]:
        return [] if cfg.probe is None else ["probe.json"]


class Finetuning(Task):
    """Classification of labelled data with all weights of an encoder trained."""

    def before(self, cfg: DictConfig) -> None:
        """Take the encoder and the preparation of inputs from the checkpoint in ``init_from``.

        Typed settings have priority: a single setting changes the one of the checkpoint, and a
        typed recipe, encoder or architecture replaces the encoder of the checkpoint. A bundle or a
        foreign model brings no configuration, so nothing is taken from it.

        Raises:
            ConfigError: the checkpoint is of another modality.
        """
        if cfg.init_from is None or checkpoint.step_of(file := Path(cfg.init_from)) < 0:
            return
        run = Run(file.absolute().parent.parent, file, Gate.typed(cfg.trust))
        if run.content.get("modality") != cfg["modality"]:
            rule = f"is of modality={run.content.get('modality')}"
            raise ConfigError("init_from", file, rule, "type that modality")
        words = [word.lstrip("+~").partition("=")[0] for word in HydraConfig.get().overrides.task]
        single = [word for word in words if word.startswith(("architecture.", "transform."))]
        typed = {word: OmegaConf.select(cfg, word) for word in single}
        groups = {word.partition(".")[0] for word in words if word not in typed}
        if not groups & {"architecture", "encoder"} and cfg.recipe == usual(cfg["modality"]):
            run.gate.check(run.architecture, MODELS, file, "encoder")
            cfg.architecture = checked(run.architecture, file)
        for key, value in (_preparation(run, {*typed}) | typed).items():
            OmegaConf.update(cfg, key, value)

    def reports(self, cfg: DictConfig) -> list[str]:
        return [] if cfg.callbacks.accuracy is None else ["finetune.json"]

    def after_data(self, cfg: DictConfig, datamodule: Any) -> None:
        """Read the number of classes from the labels."""
        cfg.classes = datamodule.transform.classes
        if cfg.init_from is None:
            text = "init_from=PATH would start it from pretrained ones"
            log(f"[yellow]fine-tuning starts from random weights: {text}[/]")


def _preparation(run: Run, typed: set[str]) -> dict[str, Any]:
    """The settings of a run's transform that do not belong to its data, under their dotted keys.

    Args:
        run: what the checkpoint tells of it.
        typed: keys that are left out, because the user has typed them.
    """
    transform, of_the_data = run.part("transform"), ("_target_", "dataset", "seed", "cache")
    kept = {key: value for key, value in transform.items() if key not in of_the_data}
    if "cache" in transform and kept.get("tokenizer") is None:
        kept["tokenizer"] = transform["cache"]  # it was trained on the run's data
    kept = {key: value for key, value in kept.items() if f"transform.{key}" not in typed}
    run.gate.check(kept, TRANSFORMS, run.file, "transform")
    check_places(kept, run.own, run.folder, run.file, ("transform",))
    return {f"transform.{key}": value for key, value in checked(kept, run.file).items()}
