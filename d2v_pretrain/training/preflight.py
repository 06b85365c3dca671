"""Checks before anything is built: the processes and GPUs of the job against the configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping

from d2v_pretrain.errors import ConfigError

_INTERACTIVE = ("bash", "interactive")  # job names for which Lightning ignores Slurm


def preflight(
    environ: Mapping[str, str], gpus: int, accelerator: str, devices: int, nodes: int, workers: int
) -> list[str]:
    """Compare what the launcher has started with what the configuration expects.

    Args:
        environ: environment variables of this process, as Slurm or torchrun set them.
        gpus: number of GPUs that torch sees.
        accelerator, devices, nodes: of ``trainer``; ``devices`` counts those of one node.
        workers: data-loading processes per device.

    Returns:
        Advice, one line each, about what works but is slow or leaves hardware unused.

    Raises:
        ConfigError: a combination that would hang, or train several copies of a run. The remedy has
            the lines to type instead.
    """
    if "TORCHELASTIC_RUN_ID" in environ:
        _check_torchrun(environ, devices, nodes)
    elif "SLURM_JOB_ID" in environ:
        _check_slurm(environ, devices, nodes)
    on_gpus = accelerator == "gpu" or (accelerator == "auto" and gpus > 0)
    if on_gpus and devices > gpus:
        _refuse_gpus(environ, gpus, devices)
    return [
        *_idle_gpus(environ, gpus if on_gpus else 0, devices),
        *_few_cpus(environ, devices * nodes, workers),
    ]


def _check_torchrun(environ: Mapping[str, str], devices: int, nodes: int) -> None:
    here = int(environ["LOCAL_WORLD_SIZE"])
    there = int(environ["WORLD_SIZE"]) // here
    if (here, there) != (devices, nodes):
        command = f"torchrun --nnodes={nodes} --nproc-per-node={devices} …"
        started = f"torchrun has started {there} x {here}"
        _refuse(started, here, there, command, devices, nodes)


def _check_slurm(environ: Mapping[str, str], devices: int, nodes: int) -> None:
    """Each task of the job must be a rank that srun has started."""
    there = int(_first(environ, "SLURM_STEP_NUM_NODES", "SLURM_JOB_NUM_NODES", "SLURM_NNODES") or 1)
    tasks = int(_first(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") or there)
    lines = f"#SBATCH --nodes={nodes}\n#SBATCH --ntasks-per-node={devices}"
    if environ.get("SLURM_JOB_NAME") in _INTERACTIVE:
        if tasks > 1 and "SLURM_STEP_ID" in environ:
            rule, remedy = "makes each task a run of its own", "type srun --job-name=d2v …"
            raise ConfigError("SLURM_JOB_NAME", environ["SLURM_JOB_NAME"], rule, remedy)
        return
    if tasks > 1 and "SLURM_STEP_ID" not in environ:
        rule = f"but only one of {tasks} tasks was started: it would wait for the others"
        remedy = "type srun before python in the script, as slurm/*.sbatch do"
        raise ConfigError("SLURM_NTASKS", tasks, rule, remedy)
    spread = environ.get("SLURM_STEP_TASKS_PER_NODE", "")  # for example 8(x3),4
    if len(set(re.findall(r"(\d+)(?:\(x\d+\))?", spread))) > 1:
        rule = "is not the same number on every node"
        raise ConfigError("tasks per node", spread, rule, f"submit with\n{lines}\n")
    here = tasks // there
    if (here, there) != (devices, nodes):
        _refuse(f"Slurm has started {there} x {here}", here, there, lines, devices, nodes)


def _refuse(started: str, here: int, there: int, lines: str, devices: int, nodes: int) -> None:
    key, value = ("trainer.devices", devices) if here != devices else ("trainer.num_nodes", nodes)
    rule = f"does not fit: {started} processes (nodes x tasks per node), "
    rule += f"the configuration has {nodes} x {devices}"
    trainer = "" if here * there == 1 else "trainer=ddp "
    remedy = f"type {trainer}trainer.devices={here} trainer.num_nodes={there}, or start it with"
    remedy += f"\n{lines}\n"
    raise ConfigError(key, value, rule, remedy)


def _refuse_gpus(environ: Mapping[str, str], gpus: int, devices: int) -> None:
    rule = f"is more than the GPUs that this process sees, {gpus}"
    without = "type trainer.accelerator=cpu, or look at nvidia-smi"
    remedy = f"type trainer.devices={gpus}" if gpus else without
    if "SLURM_JOB_ID" in environ:
        # With --gpus-per-task each task sees one GPU, as number 0; here each rank must see all GPUs
        # of its node.
        lines = f"#SBATCH --gpus-per-node={devices}\n#SBATCH --ntasks-per-node={devices}"
        remedy = f"submit with\n{lines}\nand no --gpus-per-task"
    elif "CUDA_VISIBLE_DEVICES" in environ:
        rule += f" (CUDA_VISIBLE_DEVICES={environ['CUDA_VISIBLE_DEVICES']})"
    raise ConfigError("trainer.devices", devices, rule, remedy)


def _idle_gpus(environ: Mapping[str, str], gpus: int, devices: int) -> list[str]:
    lent = environ.get("SLURM_GPUS_ON_NODE", "")
    if not lent.isdigit() or int(lent) <= min(gpus, devices):
        return []
    used = f"{devices} are used: submit with --ntasks-per-node={lent}"
    if gpus == 0:
        used = "none is used: does this torch support CUDA, and is trainer=cpu meant?"
    return [f"Slurm has lent {lent} GPUs per node, {used}"]


def _few_cpus(environ: Mapping[str, str], world: int, workers: int) -> list[str]:
    """Each rank needs one core, plus one for each data-loading process. OpenMP by default takes all
    cores of the node for each rank.
    """
    advice = []
    cpus = environ.get("SLURM_CPUS_PER_TASK", "")
    if cpus.isdigit() and int(cpus) < workers + 1:
        line = f"#SBATCH --cpus-per-task={workers + 1}"
        advice.append(f"workers={workers} share {cpus} cores: submit with {line}")
    launched = "SLURM_JOB_ID" in environ or "TORCHELASTIC_RUN_ID" in environ
    if world > 1 and launched and "OMP_NUM_THREADS" not in environ:
        unset = "OMP_NUM_THREADS is not set, and ranks of a node may compete for its cores"
        advice.append(f"{unset}: export OMP_NUM_THREADS=1")
    return advice


def _first(environ: Mapping[str, str], *names: str) -> str | None:
    return next((environ[name] for name in names if name in environ), None)
