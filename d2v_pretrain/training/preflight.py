"""Before anything is built: do the job's tasks and GPUs, CUDA's and the configuration's fit
together?"""

from __future__ import annotations

import re
from collections.abc import Mapping

from d2v_pretrain.errors import ConfigError

_INTERACTIVE = ("bash", "interactive")  # names of jobs that Lightning does not take for Slurm's


def preflight(
    environ: Mapping[str, str], gpus: int, accelerator: str, devices: int, nodes: int, workers: int
) -> list[str]:
    """Compare what the launcher has started with what the configuration expects.

    Args:
        environ: of this process, as Slurm or torchrun made it. gpus: that torch sees.
        accelerator, devices, nodes: of ``trainer``, the devices of one node. workers: of one
            device.

    Returns:
        Advice, a line each: what works but is slow, or leaves something idle.

    Raises:
        ConfigError: a combination that would hang, or train several copies of a run; with the lines
            to type instead.
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
        started = f"torchrun has started {there} x {here}"
        _refuse(
            started,
            here,
            there,
            f"torchrun --nnodes={nodes} --nproc-per-node={devices} …",
            devices,
            nodes,
        )


def _check_slurm(environ: Mapping[str, str], devices: int, nodes: int) -> None:
    """Every task is a rank, and srun starts them."""
    there = int(_first(environ, "SLURM_STEP_NUM_NODES", "SLURM_JOB_NUM_NODES", "SLURM_NNODES") or 1)
    tasks = int(_first(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") or there)
    lines = f"#SBATCH --nodes={nodes}\n#SBATCH --ntasks-per-node={devices}"
    if environ.get("SLURM_JOB_NAME") in _INTERACTIVE:
        if tasks > 1 and "SLURM_STEP_ID" in environ:
            rule = "is a name by which Lightning takes every task for a run of its own"
            raise ConfigError(
                "SLURM_JOB_NAME", environ["SLURM_JOB_NAME"], rule, "type srun --job-name=d2v …"
            )
        return
    if tasks > 1 and "SLURM_STEP_ID" not in environ:
        rule = f"but only one of {tasks} tasks was started: it would wait for the others"
        raise ConfigError(
            "SLURM_NTASKS",
            tasks,
            rule,
            "type srun before python in the script, as slurm/*.sbatch do",
        )
    spread = _first(environ, "SLURM_STEP_TASKS_PER_NODE") or ""
    if len(set(re.findall(r"(\d+)(?:\(x\d+\))?", spread))) > 1:  # "8(x3),4"
        raise ConfigError(
            "tasks per node",
            spread,
            "is not the same number on every node",
            f"submit with\n{lines}\n",
        )
    if (tasks // there, there) != (devices, nodes):
        _refuse(
            f"Slurm has started {there} x {tasks // there}",
            tasks // there,
            there,
            lines,
            devices,
            nodes,
        )


def _refuse(started: str, here: int, there: int, lines: str, devices: int, nodes: int) -> None:
    key, value = ("trainer.devices", devices) if here != devices else ("trainer.num_nodes", nodes)
    rule = f"does not fit: {started} processes (nodes x tasks a node), the configuration has {nodes} x {devices}"
    trainer = "" if here * there == 1 else "trainer=ddp "
    remedy = f"type {trainer}trainer.devices={here} trainer.num_nodes={there}, or start it with\n{lines}\n"
    raise ConfigError(key, value, rule, remedy)


def _refuse_gpus(environ: Mapping[str, str], gpus: int, devices: int) -> None:
    rule = f"is more than the GPUs that this process sees, {gpus}"
    remedy = (
        f"type trainer.devices={gpus}"
        if gpus
        else "type trainer.accelerator=cpu, or look at nvidia-smi"
    )
    if "SLURM_JOB_ID" in environ:
        # With --gpus-per-task every task sees one GPU, and as number 0; the ranks of a node must
        # see them all.
        lines = f"#SBATCH --gpus-per-node={devices}\n#SBATCH --ntasks-per-node={devices}"
        remedy = f"submit with\n{lines}\nand no --gpus-per-task"
    elif "CUDA_VISIBLE_DEVICES" in environ:
        rule += f" (CUDA_VISIBLE_DEVICES={environ['CUDA_VISIBLE_DEVICES']})"
    raise ConfigError("trainer.devices", devices, rule, remedy)


def _idle_gpus(environ: Mapping[str, str], gpus: int, devices: int) -> list[str]:
    lent = environ.get("SLURM_GPUS_ON_NODE", "")
    if not lent.isdigit() or int(lent) <= min(gpus, devices):
        return []
    if gpus == 0:
        return [
            f"Slurm has lent {lent} GPUs a node and none is used: is this torch one for CUDA, or trainer=cpu meant?"
        ]
    return [
        f"Slurm has lent {lent} GPUs a node, {devices} are used: submit with --ntasks-per-node={lent}"
    ]


def _few_cpus(environ: Mapping[str, str], world: int, workers: int) -> list[str]:
    """Each rank wants a core for itself and one per data-loading process, and not every core of the
    node for OpenMP."""
    advice = []
    cpus = environ.get("SLURM_CPUS_PER_TASK", "")
    if cpus.isdigit() and int(cpus) < workers + 1:
        advice.append(
            f"workers={workers} share {cpus} cores: submit with #SBATCH --cpus-per-task={workers + 1}"
        )
    launched = "SLURM_JOB_ID" in environ or "TORCHELASTIC_RUN_ID" in environ
    if world > 1 and launched and "OMP_NUM_THREADS" not in environ:
        advice.append(
            "OMP_NUM_THREADS is not set, ranks of a node may fight over its cores: export OMP_NUM_THREADS=1"
        )
    return advice


def _first(environ: Mapping[str, str], *names: str) -> str | None:
    return next((environ[name] for name in names if name in environ), None)
