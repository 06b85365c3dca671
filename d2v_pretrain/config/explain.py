"""Any error of composing a configuration as one sentence: the key, its value, the nearest valid
ones, the file."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from d2v_pretrain.config.compose import choices, config_folder, load
from d2v_pretrain.config.literal import for_shell
from d2v_pretrain.config.recipes import folders_of
from d2v_pretrain.errors import ConfigError, nearest

# What composing a configuration raises for a mistake of the user's; ``in_words`` explains it.
MISTAKES = (ConfigError, HydraException, OmegaConfBaseException)


def in_words(error: Exception, typed: Sequence[str] | None = None) -> ConfigError:
    """Any error of composing a configuration as one of ours; an error in building an object shows
    its cause.

    Args:
        error: of ours, of Hydra or of OmegaConf.
        typed: the words that were composed; by default those of the command line.
    """
    typed = sys.argv[1:] if typed is None else typed
    if isinstance(error, ConfigError):
        return error
    cause = error.__cause__
    if isinstance(cause, ConfigError):
        return cause
    if isinstance(error, MissingConfigException):
        return _no_such_choice(error, typed)
    if isinstance(error, OverrideParseException):
        return _not_readable(error.override)
    message = str(error)
    if found := re.search(r"Ambiguous value for argument '(.*)'", message):
        key, _, value = found[1].partition("=")
        rule = "has commas, between which stand the values of a sweep"
        return ConfigError(key, value, rule, f"type -m too, or {for_shell(key, value)}")
    if found := re.search(r"You must specify '(\S+)'", message):
        return ConfigError(
            found[1], "???", "has no value", f"choose one of {', '.join(choices(found[1]))}"
        )
    if found := re.search(r"Could not override '([^'\s]+)'", message):
        return _no_such_key(found[1], typed)
    if isinstance(error, InterpolationResolutionError):
        return _not_resolved(error, typed)
    if (
        isinstance(error, HydraException)
        and cause is not None
        and not isinstance(cause, OmegaConfBaseException)
    ):
        raise error  # a constructor failed: a fault of the program, shown with its trace
    return ConfigError("configuration", "", message.splitlines()[0])


def _not_readable(word: str) -> ConfigError:
    key, equals, value = word.partition("=")
    remedy = f"to take it as a text, type {for_shell(key, value)}" if equals else "type key=value"
    return ConfigError(key, value, "is not of the form key=value", remedy)


def _not_resolved(error: InterpolationResolutionError, typed: Sequence[str]) -> ConfigError:
    """The error for ``${…}``, with the typed word that holds it, if one does."""
    holding = [word for word in typed if "${" in word]
    same = [word for word in holding if word.lstrip("+~").startswith(f"{error.full_key}=")]
    word = next(iter(same or holding), f"{error.full_key}=")
    key, _, value = word.lstrip("+~").partition("=")
    text = value.strip("'").replace("\\${", "${")
    rule = f"cannot be worked out: {str(error).splitlines()[0]}"
    remedy = f"where a text is meant and no setting, type {for_shell(key, text)}"
    return ConfigError(key, value, rule, remedy if value else "")


def _no_such_choice(error: MissingConfigException, words: Sequence[str]) -> ConfigError:
    missing, options = error.missing_cfg_file or "", list(error.options or [])
    group, _, choice = missing.rpartition("/")
    rule = f"is not there{nearest(choice, options)}"
    return ConfigError(group, choice, rule, f"choose one of {', '.join(options)}")


# What other tools call our settings -> what to type here.
ELSEWHERE = {
    "batch_size": "global_batch=N (samples per update) or micro_batch=N (samples at once on a GPU)",
    "learning_rate": "lr=X",
    "epochs": "steps=N, the number of updates",
    "max_steps": "steps=N",
    "warmup_steps": "warmup=N",
    "gpus": "trainer.devices=N, or trainer=ddp for all GPUs of this machine",
    "nodes": "trainer.num_nodes=N",
    "precision": "trainer.precision=bf16-mixed",
    "gradient_accumulation_steps": "global_batch=N: what exceeds micro_batch is accumulated",
    "num_workers": "workers=N",
    "output_dir": "folder=DIR, or name=RUN for runs/RUN",
    "resume_from": "name=RUN: a run goes on by the same command, from its newest checkpoint",
    "pretrained": "init_from=PATH",
    "save_steps": "checkpoint.every_steps=N",
    "data_dir": "data=folder data.root=DIR",
    "model": "objective=… and encoder=…",
    "wandb": "logger=wandb",
}
_SAME = {
    "batch_size": ("bs", "batch", "train_batch_size", "per_device_train_batch_size"),
    "epochs": ("max_epochs", "num_epochs", "num_train_epochs", "trainer.max_epochs"),
    "max_steps": ("max_update", "total_steps", "num_steps", "trainer.max_steps"),
    "gpus": ("devices", "num_gpus", "n_gpus", "ngpus"),
    "nodes": ("num_nodes", "nnodes"),
    "gradient_accumulation_steps": ("accumulate_grad_batches", "update_freq", "grad_accum"),
    "output_dir": ("output", "out_dir", "save_dir", "logdir", "log_dir", "run_name"),
    "resume_from": ("resume_from_checkpoint", "ckpt_path", "ckpt", "resume_path"),
    "pretrained": ("weights", "init_checkpoint", "model_name_or_path", "checkpoint_path"),
    "data_dir": ("data_path", "dataset_path", "root", "train_dir", "path", "input"),
    "model": ("arch", "model_name", "backbone", "model_size"),
    "learning_rate": ("base_lr", "peak_lr", "optimizer.lr"),
    "warmup_steps": ("num_warmup_steps", "warmup_updates"),
    "save_steps": ("save_every", "checkpoint_every", "save_interval"),
    "num_workers": ("n_workers", "dataloader_num_workers"),
}
ELSEWHERE |= {other: ELSEWHERE[name] for name, others in _SAME.items() for other in others}


def _no_such_key(key: str, words: Sequence[str]) -> ConfigError:
    """The error for an unknown key, with the most similar keys and groups of this run."""
    typed = [word for word in words if "=" in word and not word.startswith("-")]
    given = dict(word.lstrip("+~").split("=", 1) for word in typed)
    value = given.get(key, "")
    if key in ELSEWHERE:
        return ConfigError(key, value, "is not a setting here", f"type {ELSEWHERE[key]}")
    kept = [word for word in typed if word.partition("=")[0].lstrip("+~") != key]
    try:
        keys = set(_keys(load(kept)))
    except Exception:  # another key is wrong too: then suggest keys of a run with no typed settings
        keys = set(_keys(load(["modality=audio"])))
    near = nearest(key, sorted(keys | folders_of(typed).groups()))
    if key.startswith("data.") and not near and str(given.get("data", "sample")) == "sample":
        rule = "is not a setting of the embedded data"
        remedy = "type data=folder too, or data=shards, or a set by name"
        return ConfigError(key, value, rule, remedy)
    first = key.partition(".")[0]
    place = f"conf/{first}/" if (config_folder() / first).is_dir() else "conf/pretrain.yaml"
    return ConfigError(key, value, f"is not a setting{near}", f"the settings are in {place}")


def _keys(cfg: DictConfig) -> Iterator[str]:
    """Dotted names of all values and nodes."""

    def walk(node: Any, prefix: str) -> Iterator[str]:
        for key, value in node.items():
            yield f"{prefix}{key}"
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")

    yield from walk(OmegaConf.to_container(cfg, resolve=False), "")
