"""One run: configuration, checks, data, model, training. The whole wiring is in this file."""

from __future__ import annotations

import copy
import logging
import os
import signal
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
from d2v_pretrain.checkpoint import ownership
from d2v_pretrain.config import stored
from d2v_pretrain.config.compose import check
from d2v_pretrain.config.printing import print_anything
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.redaction import redact, revealed
from d2v_pretrain.rng import seed_default
from d2v_pretrain.training.callbacks.bad_data import BadData
from d2v_pretrain.training.callbacks.metrics import JsonlLogger
from d2v_pretrain.training.callbacks.preemption import Preemption
from d2v_pretrain.training.callbacks.saving import Saving
from d2v_pretrain.training.destinations import check_logger
from d2v_pretrain.training.init_from import load_weights, read, source
from d2v_pretrain.training.log import log
from d2v_pretrain.training.module import TrainingModule, check_same_data
from d2v_pretrain.training.preflight import preflight
from d2v_pretrain.training.ranks import is_lost, leave_together, post_mortem
from d2v_pretrain.training.signals import STOP, Stopped
from d2v_pretrain.training.start import CHANGES, check_fits, find_start, record, tell_changes
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
    print_anything()
    task: Task = instantiate(cfg.task)
    task.before(cfg)
    composed = copy.deepcopy(cfg)
    check(cfg)
    _check_job(cfg)
    _quiet_lightning()
    folder = Path(cfg.folder)
    check_logger(cfg.logger, os.environ)
    ownership.join()
    start = find_start(composed, folder)
    last = start.checkpoint
    log(f"[bold]{cfg.name}[/] in {folder}")
    if last is not None and task.is_finished(cfg, folder, start.step):
        if any(change.key == "data.root" for change in start.changes):
            check_same_data(checkpoint.data_of(last), build_data(cfg).fingerprint)  # type: ignore[attr-defined]
        more = "Type steps=… for more, or name=… for a new run."
        log(f"{last} is at step {start.step:,}: finished. {more}")
        return None
    datamodule = build_data(cfg)
    log(datamodule.describe())  # type: ignore[attr-defined]
    task.after_data(cfg, datamodule)
    if last is not None:
        check_same_data(checkpoint.data_of(last), datamodule.fingerprint)  # type: ignore[attr-defined]
        log(f"going on from {last}, step {start.step:,} of {cfg.steps:,}")
        tell_changes(start)
    module = build_module(cfg, last)
    check_fits(module, start)
    module.config = stored.text_of(cfg)
    trainer = build_trainer(cfg, folder, start.step)
    per_step, world = datamodule.micro_batches_per_step, trainer.world_size  # type: ignore[attr-defined]
    trainer.accumulate_grad_batches = per_step // world
    each = f"{per_step // world} on each of {world}"
    log(f"an update is {per_step} micro-batches of up to {cfg.micro_batch} samples: {each}")
    undo = partial(_put_back, _contents(folder, "config.yaml", "environment.json", CHANGES))
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(folder / "config.yaml") as temporary:
            temporary.write_text(module.config, "utf-8")
        record(start, folder)
        STOP.ends.insert(0, undo)
    try:
        _fit(trainer, module, datamodule, last, folder)
    except Stopped:
        if trainer.is_global_zero and trainer.global_step == start.step:
            undo()
        raise
    if (reason := stopped(trainer)) is not None:
        at = f"{trainer.global_step:,} of {cfg.steps:,}"
        saved = next(c.saved for c in trainer.checkpoint_callbacks if isinstance(c, Saving))
        left = "" if saved == trainer.global_step else f" up to step {saved:,}, the last good one,"
        log(f"stopped at step {at} ({reason}); everything{left} is saved in {folder}.")
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
    launcher = trainer.strategy.launcher
    if launcher is not None:
        STOP.ends.append(partial(launcher.kill, signal.SIGTERM))
    try:
        trainer.fit(module, datamodule, ckpt_path=last, weights_only=True)
    except Stopped:
        if launcher is not None:
            launcher.kill(signal.SIGTERM)  # the ranks that Lightning has started
        raise
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
            ownership.release()
            os._exit(1)
        raise
    leave_together()


def _contents(folder: Path, *names: str) -> dict[Path, bytes | None]:
    """What files hold; None for one that does not exist."""
    paths = [folder / name for name in names]
    return {path: path.read_bytes() if path.exists() else None for path in paths}


def _put_back(before: dict[Path, bytes | None]) -> None:
    """After a stop before the first step, let files be as they were."""
    for path, content in before.items():
        if content is None:
            path.unlink(missing_ok=True)
        else:
            with atomic(path) as temporary:
                temporary.write_bytes(content)


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
        load_student(module, source(str(cfg.init_from)))
    return module


def load_student(module: TrainingModule, path: Path) -> None:
    """Start the encoders from a checkpoint, a bundle, a Hugging Face folder or a published file.

    Raises:
        ConfigError: it cannot be read, or is of another architecture.
    """
    log(load_weights(module.objective.encoders, read(path)))


def build_trainer(cfg: DictConfig, folder: Path, step: int = 0) -> Trainer:
    """Lightning's Trainer with our logger, checkpoints and callbacks. It does not shuffle (the
    datamodule does) and does not validate.

    Args:
        cfg: see ``pretrain``.
        folder: the run's folder.
        step: that the run goes on from.
    """
    loggers: list[Logger] = [JsonlLogger(folder)]
    if cfg.logger:
        settings = revealed(OmegaConf.to_container(cfg.logger, resolve=True))
        logger = instantiate(settings, _convert_="all")
        loggers.append(logger(step=step) if isinstance(logger, partial) else logger)
    nodes = [node for node in cfg.callbacks.values() if node is not None]
    # BadData is first: a step without data is neither logged nor saved.
    callbacks = [BadData(), *(instantiate(node, _convert_="all") for node in nodes)]
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
