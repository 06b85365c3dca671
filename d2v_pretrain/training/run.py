"""One run: config -> checks -> build -> fit, the whole wiring in plain sight."""

from __future__ import annotations

import itertools
import logging
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from d2v_pretrain.checkpoint import file as checkpoint
from d2v_pretrain.checkpoint.run import adopt
from d2v_pretrain.config import identity as provenance
from d2v_pretrain.config.compose import check
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.rng import seed_default
from d2v_pretrain.training.callbacks.metrics import JsonlLogger
from d2v_pretrain.training.callbacks.preemption import Preemption
from d2v_pretrain.training.callbacks.saving import Saving
from d2v_pretrain.training.init_from import load_weights, read
from d2v_pretrain.training.module import Pretrain
from d2v_pretrain.training.preflight import preflight
from d2v_pretrain.training.ranks import is_lost, leave_together, post_mortem

CPU = torch.device("cpu")


def pretrain(cfg: DictConfig) -> Trainer | None:
    """Start a run, or go on with it.

    Args:
        cfg: composed by ``conf/pretrain.yaml``.

    Returns:
        The trainer after ``fit``, with the module and the data; None if the run was finished
        already.

    Raises:
        ConfigError: before anything is allocated for what is wrong in ``cfg``; later for what is
            wrong with the data.
    """
    if cfg.task == "finetune":
        adopt(cfg)
    check(cfg)
    _preflight(cfg)
    _quiet_lightning()
    plain, folder = OmegaConf.to_container(cfg, resolve=True), Path(cfg.folder)
    assert isinstance(plain, dict)
    last = _where_to_start(cfg, plain, folder)
    say(f"[bold]{cfg.name}[/] in {folder}")
    judges = {"probe.json": cfg.probe, "finetune.json": cfg.callbacks.get("accuracy")}
    judged = all(
        (folder / report).exists() for report, judge in judges.items() if judge is not None
    )
    if last is not None and (step := checkpoint.step_of(last)) >= cfg.steps and judged:
        say(
            f"{last} is at step {step:,}: finished. Type steps=… for more, or name=… for a new run."
        )
        return None
    datamodule = build_data(cfg)
    say(datamodule.describe())  # type: ignore[attr-defined]
    if cfg.task == "finetune":
        cfg.classes = datamodule.transform.classes  # type: ignore[attr-defined]  # only the data know
    if last is not None:
        say(f"going on from {last}, step {checkpoint.step_of(last):,} of {cfg.steps:,}")
    module = build_module(cfg, last)
    module.config = OmegaConf.to_yaml(cfg, resolve=True)
    trainer = build_trainer(cfg, folder)
    per_step, world = datamodule.micro_batches_per_step, trainer.world_size  # type: ignore[attr-defined]
    trainer.accumulate_grad_batches = per_step // world
    say(
        f"an update is {per_step} micro-batches of up to {cfg.micro_batch} samples: {per_step // world} on each of {world}"
    )
    if trainer.is_global_zero:
        _write_down(cfg, folder)
    _fit(trainer, module, datamodule, last, folder)
    if (reason := stopped(trainer)) is not None:
        say(
            f"stopped at step {trainer.global_step:,} of {cfg.steps:,} ({reason}); all of it is saved in {folder}."
        )
        say("The same command goes on from there.")
    return trainer


def _preflight(cfg: DictConfig) -> None:
    """Refuse what would hang or train several copies; advise on the rest."""
    t = cfg.trainer
    if isinstance(t.devices, int):
        gpus = torch.cuda.device_count()
        for advice in preflight(
            os.environ, gpus, t.accelerator, t.devices, t.num_nodes, cfg.workers
        ):
            say(f"[yellow]{advice}[/]")


def _fit(
    trainer: Trainer,
    module: Pretrain,
    datamodule: LightningDataModule,
    last: Path | None,
    folder: Path,
) -> None:
    """Train; all ranks leave together, and if one is lost, each of the others says which and why.

    A rank that only lost another one leaves without a stack trace, which would hide that of the
    cause."""
    try:
        trainer.fit(module, datamodule, ckpt_path=last, weights_only=True)
    except Exception as error:
        _tell(error, folder)
        if is_lost(error):
            os._exit(
                1
            )  # at once: closing what is left of the connections would wait for those who are gone
        raise
    leave_together()


def _tell(error: Exception, folder: Path) -> None:
    lines = post_mortem(error)
    if first := next(lines, ""):
        newest = checkpoint.newest_valid(folder / "checkpoints")[0]
        next_step = f"with the cause mended, the same command goes on from {newest or 'the start'}"
        for line in itertools.chain((first, next_step), lines):
            Console(stderr=True).print(
                line, style="red", soft_wrap=True, highlight=False, markup=False
            )


def stopped(trainer: Trainer) -> str | None:
    """Why a run was stopped before its last step, to be gone on with; None if it was not."""
    return next(c.stopped for c in trainer.callbacks if isinstance(c, Preemption))  # type: ignore[attr-defined]


def build_data(cfg: DictConfig) -> LightningDataModule:
    """The datamodule of a configuration."""
    return instantiate(cfg.datamodule, _convert_="all")


def build_encoder(cfg: DictConfig) -> Encoder:
    """The encoder that a run of this configuration starts from, untrained: the same weights for the
    same seed."""
    seed_default(cfg.seed, CPU)
    return instantiate(cfg.architecture, _convert_="all")


def build_module(cfg: DictConfig, last: Path | None = None) -> Pretrain:
    """The objective and all that trains it, on the CPU, seeded.

    Args:
        cfg: see ``pretrain``. last: checkpoint that the run goes on from; ``init_from`` then no
            longer counts.
    """
    seed_default(cfg.seed, CPU)
    module: Pretrain = instantiate(cfg.module, _convert_="all")
    size = sum(p.numel() for p in module.objective.student.parameters()) / 1e6
    say(
        f"{size:.1f} M parameters in the encoder, {cfg.steps:,} updates of {cfg.global_batch} samples"
    )
    if cfg.init_from is not None and last is None:
        load_student(module, Path(cfg.init_from))
    if cfg.init_from is None and cfg.task == "finetune":
        say(
            "[yellow]fine-tuning starts from random weights: init_from=PATH would start it from trained ones[/]"
        )
    return module


def load_student(module: Pretrain, path: Path) -> None:
    """Start the encoders from the weights of a checkpoint, bundle, Hugging Face folder or published
    file.

    Raises:
        ConfigError: it cannot be read, or is of another architecture.
    """
    say(load_weights(module.objective.encoders, read(path)))


def build_trainer(cfg: DictConfig, folder: Path) -> Trainer:
    """Lightning's Trainer with our logger, checkpoints and callbacks; it neither shuffles nor
    validates."""
    loggers: list[Logger] = [JsonlLogger(folder)]
    if cfg.logger:  # logger=csv is empty: those two files are always written
        loggers.append(instantiate(cfg.logger, _convert_="all"))
    callbacks = [
        instantiate(node, _convert_="all") for node in cfg.callbacks.values() if node is not None
    ]
    if cfg.probe is not None:
        callbacks.append(instantiate(cfg.probe)(folder=folder, random=partial(build_encoder, cfg)))
    saving = Saving(folder / "checkpoints", **cfg.checkpoint)
    callbacks += [Preemption(cfg.max_hours), saving]
    return instantiate(
        cfg.trainer,
        _convert_="all",
        max_steps=cfg.steps,
        logger=loggers,
        callbacks=callbacks,
        plugins=[saving.io],
        profiler=_profiler(folder) if cfg.profile else None,
        default_root_dir=str(folder),
        log_every_n_steps=cfg.log_every,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )


def _quiet_lightning() -> None:
    """Its greetings, and warnings about what is meant: a teacher in eval mode, loaders sized by
    measurement."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*in eval mode at the start of training",
        ".*LeafSpec",
        ".*not have many workers",
        ".*Grad strides",
        ".*`srun` command is available",  # preflight tells of a job that was started without it
    ):
        warnings.filterwarnings("ignore", message)


def _profiler(folder: Path) -> Any:
    from lightning.pytorch.profilers import PyTorchProfiler

    return PyTorchProfiler(
        folder, "profile", schedule=torch.profiler.schedule(wait=5, warmup=5, active=10, repeat=1)
    )


def _where_to_start(cfg: DictConfig, plain: dict[Any, Any], folder: Path) -> Path | None:
    """The checkpoint to go on from, or None for the beginning."""
    if cfg.resume == "never":
        if any(folder.glob("checkpoints/*.ckpt")) or (folder / "metrics.jsonl").exists():
            raise ConfigError(
                "resume",
                "never",
                f"would overwrite {folder}",
                "type name=… for a new run, or resume=auto",
            )
        return None
    last, rejected = checkpoint.newest_valid(folder / "checkpoints")
    for path, reason in rejected:
        say(f"[yellow]{path} {reason}; passed over[/]")
    if last is None:
        return None
    old = OmegaConf.to_container(OmegaConf.create(checkpoint.config_of(last)))
    assert isinstance(old, dict)
    provenance.check_same_run(old, plain)  # type: ignore[arg-type]
    return last


def _write_down(cfg: DictConfig, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    provenance.write_environment(folder)


@rank_zero_only
def say(text: str) -> None:
    """One line for the user, from the first rank."""
    Console().print(text, soft_wrap=True, highlight=False)
