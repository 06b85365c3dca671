"""The console command ``d2v-pretrain COMMAND key=value …``, and ``train.py``, which is its command
``pretrain``."""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from d2v_pretrain.atomic_files import CAUSES, unwritable
from d2v_pretrain.checkpoint import ownership
from d2v_pretrain.config import show
from d2v_pretrain.config.compose import (
    choices,
    complete,
    data_sets,
    register_resolvers,
    typed_words,
)
from d2v_pretrain.config.explain import MISTAKES, in_words
from d2v_pretrain.config.naming import for_sweep
from d2v_pretrain.config.options import refuse_dashes, table
from d2v_pretrain.config.printing import print_anything
from d2v_pretrain.config.recipes import USUAL, config_folder, for_hydra
from d2v_pretrain.config.rules import check_going_on
from d2v_pretrain.errors import ConfigError, nearest
from d2v_pretrain.redaction import conceal_tracebacks, redact
from d2v_pretrain.training.signals import EXIT_REQUEUE, STOP, Stopped
from d2v_pretrain.training.terminal import outlive_terminal

COMMANDS = {
    "pretrain": "train an encoder without labels; also what is run without a command",
    "finetune": "train a classifier on labelled data, from an encoder that was pretrained",
    "evaluate": "probe a checkpoint of a run on labelled data",
    "extract": "write the features that an encoder gives for files",
    "export": "write an encoder for transformers, or as a bundle",
    "doctor": "look for faults in data before a run",
    "prepare": "put audio, images or text into shards",
}
# Commands that are modules, started by name as `python -m` does. Those of `datamodules` must not be
# imported here.
MODULES = {
    "evaluate": "d2v_pretrain.evaluate",
    "extract": "d2v_pretrain.extract",
    "export": "d2v_pretrain.export",
    "doctor": "datamodules.doctor",
    "prepare": "datamodules.prepare",
}
OVERVIEW = """data2vec 1.0 and 2.0 self-supervised pretraining for speech, images and text.

Usage: d2v-pretrain COMMAND key=value …

Commands:
{commands}

`d2v-pretrain COMMAND -h` prints the options of a command.

Examples:
  d2v-pretrain pretrain modality=audio
  d2v-pretrain extract run=audio_data2vec2_tiny data.root=DIR output=features
  d2v-pretrain export run=audio_data2vec2_tiny
"""
PRETRAIN = """Pretrain data2vec 1.0 or 2.0 on speech, images or text, then probe the features.

Usage: d2v-pretrain pretrain modality=audio|text|vision [key=value …]
   or: python train.py modality=audio|text|vision [key=value …]

With a modality alone, a small encoder trains for minutes on data that comes with the package.
Everything about a run is in its folder, runs/NAME. The same command goes on with a run that was
stopped, from its newest checkpoint.

Settings:
{settings}

All other values are set by their path as well, for example masking.prob=0.5. `--cfg job` prints the
whole configuration and trains nothing; `-m` trains a run for each combination of values (seed=0,1).

Examples:
  d2v-pretrain pretrain modality=audio data=folder data.root=DIR name=mine steps=20000
  d2v-pretrain pretrain recipe=vision_data2vec2_base data.root=DIR trainer=ddp
  d2v-pretrain pretrain -m modality=text seed=0,1,2
"""
FINETUNE = """Train a classifier on labelled data. All weights of the encoder are trained.

Usage: d2v-pretrain finetune modality=… init_from=PATH data=… [key=value …]
   or: python train.py task=finetune modality=… init_from=PATH data=… [key=value …]

Architecture and preparation of the inputs are taken from init_from if it is one of our checkpoints.
The accuracy on the test data is in finetune.json in the run's folder.

Settings:
{settings}

All other values are set by their path as well. `--cfg job` prints the whole configuration.

Examples:
  d2v-pretrain finetune modality=audio init_from=runs/mine/checkpoints/last.ckpt data=fsdd
  d2v-pretrain finetune modality=vision init_from=EXPORT data=folder data.root=CLASS_FOLDERS
  d2v-pretrain finetune modality=text init_from=BUNDLE data=sst2 data.root=DIR steps=2000 lr=5e-5
"""
# The settings that people type, for the usage pages. Defaults are read from conf/pretrain.yaml.
SETTINGS = {
    "modality": "kind of data",
    "objective": "version of the method",
    "encoder": "size of the encoder",
    "recipe": "a file of conf/recipe/ by its name, in place of modality, objective and encoder",
    "data": "the data: a set by name, or your own files (folder) or shards (shards)",
    "data.root": "where the data are, for folder, shards and most sets",
    "labels": "name of the classification, where the data have several",
    "masking": "mask policy; its own settings are masking.KEY=…",
    "name": "name of the run, made from the choices by default",
    "folder": "the run's folder",
    "seed": "of the weights, masks, dropout and order of the data",
    "steps": "number of optimizer updates",
    "lr": "peak learning rate",
    "warmup": "number of updates until the peak; 5 % of steps by default",
    "global_batch": "samples in an update, over all devices and accumulated micro-batches",
    "micro_batch": "samples in a forward pass on one device",
    "max_tokens": "largest number of audio samples or tokens in a micro-batch, padding included",
    "workers": "processes that load data, for each device",
    "trainer": "hardware: GPU if there is one (auto), or several GPUs (ddp, fsdp)",
    "logger": "where metrics go besides metrics.jsonl",
    "probe": "null leaves out the probe at the end",
    "resume": "auto goes on with a run of this name, with_changes takes new settings for it; never "
    "refuses to overwrite it",
    "init_from": "weights to start from: a checkpoint, bundle, transformers folder or fairseq file",
    "max_hours": "stop in time, with a checkpoint",
    "checkpoint.every_steps": "save every so many updates",
    "checkpoint.every_minutes": "save every so many minutes",
    "checkpoint.keep_last": "number of checkpoints that are kept",
    "log_every": "updates between two lines of metrics.jsonl",
    "profile": "true writes a trace of ten updates",
}
_NOT_IN_FINETUNING = ("objective", "masking", "probe")
_LISTED = ("modality", "objective", "encoder", "data", "trainer", "logger", "recipe")
_HYDRA_FLAGS = (
    *("--cfg", "--resolve", "--package", "--run", "--multirun", "--info", "--version"),
    *("--hydra-help", "--shell-completion", "--experimental-rerun"),
    *("--config-path", "--config-name", "--config-dir"),
)


def main() -> None:
    """``d2v-pretrain``: run the command that is the first word, or print what there is."""
    print_anything()
    first, *words = sys.argv[1:] or ["-h"]
    if first in ("-h", "--help"):
        print(OVERVIEW.format(commands=table(list(COMMANDS.items()))), end="")
    elif first in MODULES:
        sys.argv[1:] = words
        try:
            runpy.run_module(MODULES[first], run_name="__main__", alter_sys=True)
        except KeyboardInterrupt:  # while torch was imported
            sys.exit(128 + signal.SIGINT)
    elif first == "finetune":
        train(["task=finetune", *words], FINETUNE, _NOT_IN_FINETUNING)
    elif first in COMMANDS or "=" in first or first.startswith("-"):
        train(words if first in COMMANDS else [first, *words])
    else:
        rule = f"is not a command{nearest(first, COMMANDS)}"
        _stop(ConfigError("command", first, rule, f"type one of {', '.join(COMMANDS)}"))


def train(words: list[str], page: str = PRETRAIN, without: Sequence[str] = ("labels",)) -> None:
    """Compose a configuration from the words and run it. A mistake of the user's is one line and
    exit code 2.

    Args:
        words: of the form ``key=value``, and options of Hydra.
        page: printed for ``-h``.
        without: settings that are left out of that page.
    """
    print_anything()
    if {"-h", "--help"} & set(words):
        rows = [row for row in _settings() if row[0].partition("=")[0] not in without]
        print(page.format(settings=table(rows)), end="")
        return
    # Without this variable, Hydra prints errors itself, some with a trace, and exits.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    register_resolvers()
    conceal_tracebacks()
    try:
        refuse_dashes(words, _HYDRA_FLAGS)
        if _asks_for_cfg(words):
            options = ("--cfg", "-c", "job", "--cfg=job", "--resolve")
            print(show.job([word for word in words if word not in options]), end="")
            return
        typed = for_hydra(words)
        many = [word for word in typed if word in ("-m", "--multirun")]
        if many:
            typed = for_sweep([word for word in typed if word not in many])
        # After an option between overrides, argparse takes no further overrides.
        sys.argv[1:] = [*many, *typed]
        hydra.main(str(config_folder()), "pretrain", version_base="1.3")(_task)()
    except MISTAKES as error:
        _stop(error)
    except KeyboardInterrupt:  # before _task
        sys.exit(128 + signal.SIGINT)


def _asks_for_cfg(words: Sequence[str]) -> bool:
    """Whether ``--cfg job`` is among the words."""
    return "--cfg=job" in words or ("job" in words and bool({"--cfg", "-c"} & set(words)))


def _settings() -> list[tuple[str, str]]:
    """``SETTINGS`` with their defaults and choices; the default is shown as "…" where
    the recipe sets it."""
    values: Any = OmegaConf.to_container(OmegaConf.load(config_folder() / "pretrain.yaml"))
    values |= USUAL
    for group in values["defaults"]:
        values |= group if isinstance(group, dict) else {}
    rows = []
    for key, meaning in SETTINGS.items():
        default = values
        for part in key.split("."):
            default = default.get(part, "???") if isinstance(default, dict) else "???"
        if default is None or isinstance(default, bool):
            default = json.dumps(default)
        shown = "…" if isinstance(default, str) and ("${" in default or "?" in default) else default
        known = data_sets() if key == "data" else choices(key)
        listed = f" ({', '.join(known)})" if key in _LISTED else ""
        rows.append((f"{key}={shown}", meaning + listed))
    return rows


def _task(cfg: DictConfig) -> None:
    STOP.install(at_once=True)  # before the imports, so that a signal during them counts
    STOP.watch()
    STOP.ends.append(ownership.release)
    outlive_terminal()
    try:
        register_resolvers()  # a launcher may have started this process
        complete(cfg, typed_words())
        check_going_on(cfg)  # before a folder of that name is made
        with ownership.owned(Path(cfg.folder), lambda: STOP.reason is not None):
            # torch and Lightning take seconds, which a mistake in the words need not wait for.
            from d2v_pretrain.training.run import pretrain, stopped

            trainer = pretrain(cfg)
        if trainer is not None and stopped(trainer) is not None:
            _requeue(trainer.is_global_zero)
        STOP.uninstall()
    except Stopped:
        _leave_at_once()
    except MISTAKES as error:
        STOP.uninstall()
        _stop(error)  # here, because Hydra would print an additional line
    except OSError as error:
        STOP.uninstall()
        if error.errno not in CAUSES or not _is_in(error.filename, cfg.folder):
            raise
        _stop(unwritable(error, error.filename or cfg.folder))


def _leave_at_once() -> None:
    """Exit after a stop while there was nothing to save.

    Every rank exits with the code for a requeue, because the launchers then end the others. Only
    those that Lightning has started do not: it would kill rank 0 before that has exited."""
    first = ownership.is_first(os.environ)
    if first:
        line = f"stopped ({STOP.reason}) while there was nothing to save."
        print(f"{line} The same command goes on from there.", flush=True)
        STOP.hand_over()
    sys.exit(0 if not first and ownership.VARIABLE in os.environ else EXIT_REQUEUE)


def _is_in(file: object, folder: str) -> bool:
    """Whether a file that could not be written belongs to the run. If the error
    names no file, as for a full disk, the file is taken to belong to the run."""
    within = os.path.abspath(folder)
    return not isinstance(file, str) or Path(os.path.abspath(file)).is_relative_to(within)


def _requeue(is_first: bool) -> None:
    """Exit with the code on which slurm/*.sbatch requeue the job.

    Only rank 0 does: Lightning's launcher and torchrun kill the other processes as soon as one
    exits with an error, and rank 0 may still be at work then."""
    if is_first:
        STOP.hand_over()
        sys.exit(EXIT_REQUEUE)


def _stop(error: Exception) -> None:
    print(redact(f"error: {in_words(error)}"), file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
