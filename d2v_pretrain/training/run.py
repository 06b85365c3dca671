"""One run: configuration, checks, data, model, training. The whole wiring is in this file."""

from __future__ import annotations

import logging
import os
import warnings
from functools import partial
from pathlib import Path

import torch
from hydra.utils import instantiate
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PyTorchProfiler
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from d2v_pretrain.atomic_files import atomic
from d2v_pretrain.checkpoint import file as checkpoint
from d2v_pretrain.config import stored
from d2v_pretrain.config.compose import check
from d2v_pretrain.config.identity import check_same_run
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.redaction import concealed, redact, revealed
from d2v_pretrain.rng import seed_default
from d2v_pretrain.training.callbacks.metrics import JsonlLogger
from d2v_pretrain.training.callbacks.preemption import Preemption
from d2v_pretrain.training.callbacks.saving import Saving
from d2v_pretrain.training.environment import write_environment
from d2v_pretrain.training.init_from import load_weights, read
from d2v_pretrain.training.log import log
from d2v_pretrain.training.module import TrainingModule
from d2v_pretrain.training.preflight import preflight
from d2v_pretrain.training.ranks import is_lost, leave_together, post_mortem
from d2v_pretrain.training.tasks import Task

CPU = torch.device("cpu")


def pretrain(cfg: DictConfig) -> Trainer | None:
    """Start a run or continue it, whatever its task is.

    Args:
        cfg: composed from ``conf/pretrain.yaml``.

    Returns:
        The trainer after ``fit``, with the module and the data; None if the run was finished
        before.

    Raises:
        ConfigError: for mistakes in ``cfg`` before anything is allocated, and for mistakes in the
            data after they were read.
    """
    task: Task = instantiate(cfg.task)
    task.before(cfg)
    check(cfg)
    _check_job(cfg)
    _quiet_lightning()
    folder = Path(cfg.folder)
    last = _where_to_start(cfg, folder)
    step = 0 if last is None else checkpoint.step_of(last)
    log(f"[bold]{cfg.name}[/] in {folder}")
    if last is not None and task.is_finished(cfg, folder, step):
        more = "Type steps=… for more, or name=… for a new run."
        log(f"{last} is at step {step:,}: finished. {more}")
        return None
    datamodule = build_data(cfg)
    log(datamodule.describe())  # type: ignore[attr-defined]
    task.after_data(cfg, datamodule)
    if last is not None:
        log(f"going on from {last}, step {step:,} of {cfg.steps:,}")
    module = build_module(cfg, last)
    module.config = stored.text_of(cfg)
    trainer = build_trainer(cfg, folder)
    per_step, world = datamodule.micro_batches_per_step, trainer.world_size  # type: ignore[attr-defined]
    trainer.accumulate_grad_batches = per_step // world
    each = f"{per_step // world} on each of {world}"
    log(f"an update is {per_step} micro-batches of up to {cfg.micro_batch} samples: {each}")
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(folder / "config.yaml") as temporary:
            temporary.write_text(module.config, "utf-8")
        write_environment(folder)
    _fit(trainer, module, datamodule, last, folder)
    if (reason := stopped(trainer)) is not None:
        at = f"{trainer.global_step:,} of {cfg.steps:,}"
        log(f"stopped at step {at} ({reason}); everything is saved in {folder}.")
        log("The same command goes on from there.")
    return trainer


def _check_job(cfg: DictConfig) -> None:
    """Refuse jobs that would hang or train several copies; print advice on the others."""
    t = cfg.trainer
    if isinstance(t.devices, int):
        hardware = torch.cuda.device_count(), t.accelerator, t.devices, t.num_nodes, cfg.workers
        for advice in preflight(os.environ, *hardware):
            log(f"[yellow]{advice}[/]")


def _fit(
    trainer: Trainer,
    module: TrainingModule,
    datamodule: LightningDataModule,
    last: Path | None,
    folder: Path,
) -> None:
    """Train. All ranks exit together; if one fails, each of the others reports which and why."""
    try:
        trainer.fit(module, datamodule, ckpt_path=last, weights_only=True)
    except Exception as error:
        console = Console(stderr=True)
        for number, line in enumerate(post_mortem(error)):
            console.print(redact(line), style="red", soft_wrap=True, highlight=False, markup=False)
            if number == 0:
                newest = checkpoint.newest_valid(folder / "checkpoints")[0] or "the start"
                line = f"with the cause mended, the same command goes on from {newest}"
                console.print(line, style="red", soft_wrap=True, highlight=False, markup=False)
        if is_lost(error):
            # No stack trace, which would hide the one of the rank that failed; and no clean-up,
            # which would wait for that rank.
            os._exit(1)
        raise
    leave_together()


def stopped(trainer: Trainer) -> str | None:
    """Why a run stopped before its last step; None if it did not."""
    return next(c.stopped for c in trainer.callbacks if isinstance(c, Preemption))  # type: ignore[attr-defined]


def build_data(cfg: DictConfig) -> LightningDataModule:
    """The datamodule of a configuration."""
    return instantiate(cfg.datamodule, _convert_="all")


def build_encoder(cfg: DictConfig) -> Encoder:
    """The untrained encoder that a run of this configuration starts from; the same weights for the
    same seed.
    """
    seed_default(cfg.seed, CPU)
    return instantiate(cfg.architecture, _convert_="all")


def build_module(cfg: DictConfig, last: Path | None = None) -> TrainingModule:
    """The module with its objective, on the CPU, from seeded initial weights.

    Args:
        cfg: see ``pretrain``.
        last: checkpoint that the run continues from; ``init_from`` is then not read.
    """
    seed_default(cfg.seed, CPU)
    module: TrainingModule = instantiate(cfg.module, _convert_="all")
    size = sum(p.numel() for p in module.objective.student.parameters()) / 1e6
    updates = f"{cfg.steps:,} updates of {cfg.global_batch} samples"
    log(f"{size:.1f} M parameters in the encoder, {updates}")
    if cfg.init_from is not None and last is None:
        load_student(module, Path(cfg.init_from))
    return module


def load_student(module: TrainingModule, path: Path) -> None:
    """Start the encoders from a checkpoint, a bundle, a Hugging Face folder or a published file.

    Raises:
        ConfigError: it cannot be read, or is of another architecture.
    """
    log(load_weights(module.objective.encoders, read(path)))


def build_trainer(cfg: DictConfig, folder: Path) -> Trainer:
    """Lightning's Trainer with our logger, checkpoints and callbacks. It does not shuffle (the
    datamodule does) and does not validate.
    """
    loggers: list[Logger] = [JsonlLogger(folder)]
    if cfg.logger:
        settings = revealed(OmegaConf.to_container(cfg.logger, resolve=True))
        loggers.append(instantiate(settings, _convert_="all"))
    nodes = [node for node in cfg.callbacks.values() if node is not None]
    callbacks = [instantiate(node, _convert_="all") for node in nodes]
    if cfg.probe is not None:
        callbacks.append(instantiate(cfg.probe)(folder=folder, random=partial(build_encoder, cfg)))
    saving = Saving(folder / "checkpoints", **cfg.checkpoint)
    callbacks += [Preemption(cfg.max_hours), saving]
    profiler = None
    if cfg.profile:
        steps = torch.profiler.schedule(wait=5, warmup=5, active=10, repeat=1)
        profiler = PyTorchProfiler(folder, "profile", schedule=steps)
    return instantiate(
        cfg.trainer,
        _convert_="all",
        max_steps=cfg.steps,
        logger=loggers,
        callbacks=callbacks,
        plugins=[saving.io],
        profiler=profiler,
        default_root_dir=str(folder),
        log_every_n_steps=cfg.log_every,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )


def _quiet_lightning() -> None:
    """Silence Lightning's start-up messages, and warnings about choices made on purpose (teacher in
    eval mode, few workers).
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*in eval mode at the start of training",
        ".*LeafSpec",
        ".*not have many workers",
        ".*Grad strides",
        ".*`srun` command is available",  # preflight reports a job that was started without srun
    ):
        warnings.filterwarnings("ignore", message)


def _where_to_start(cfg: DictConfig, folder: Path) -> Path | None:
    """The checkpoint to continue from, or None for the beginning."""
    if cfg.resume == "never":
        if any(folder.glob("checkpoints/*.ckpt")) or (folder / "metrics.jsonl").exists():
            remedy = "type name=… for a new run, or resume=auto"
            raise ConfigError("resume", "never", f"would overwrite {folder}", remedy)
        return None
    last, rejected = checkpoint.newest_valid(folder / "checkpoints")
    for path, reason in rejected:
        log(f"[yellow]{path} {reason}; passed over[/]")
    if last is not None:
        old = stored.plain(checkpoint.config_of(last), last)
        check_same_run(concealed(old), stored.resolved(cfg))
    return last
