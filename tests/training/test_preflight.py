"""preflight.py: environments as Slurm 22.05 and torchrun make them, against what the configuration
expects."""

from __future__ import annotations

from typing import Any

import pytest

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.training.preflight import preflight


def step(nodes: int, tasks: int, **more: str) -> dict[str, str]:
    """What srun gives a task of ``nodes`` x ``tasks`` (read off a real one)."""
    job = batch(nodes, tasks) | {
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_NODES": str(nodes),
        "OMP_NUM_THREADS": "4",
    }
    each = f"{tasks}(x{nodes})" if nodes > 1 else str(tasks)
    return (
        job | {"SLURM_STEP_NUM_TASKS": str(nodes * tasks), "SLURM_STEP_TASKS_PER_NODE": each} | more
    )


def batch(nodes: int, tasks: int) -> dict[str, str]:
    """What a batch script gets."""
    env = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "d2v",
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_PROCID": "0",
    }
    return env | {"SLURM_NTASKS": str(nodes * tasks), "SLURM_NTASKS_PER_NODE": str(tasks)}


def torchrun(nodes: int, processes: int) -> dict[str, str]:
    env = {
        "TORCHELASTIC_RUN_ID": "none",
        "OMP_NUM_THREADS": "1",
        "LOCAL_WORLD_SIZE": str(processes),
    }
    return env | {"WORLD_SIZE": str(nodes * processes)}


def check(environ: dict[str, str], **wanted: Any) -> list[str]:
    return preflight(
        environ,
        **{"gpus": 0, "accelerator": "cpu", "devices": 1, "nodes": 1, "workers": 0} | wanted,
    )


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, {}),
        ({}, {"devices": 8, "gpus": 8, "accelerator": "auto"}),
        ({}, {"devices": 2, "accelerator": "auto"}),
        (step(1, 1), {}),
        (
            step(4, 8, SLURM_GPUS_ON_NODE="8"),
            {"devices": 8, "nodes": 4, "gpus": 8, "accelerator": "auto"},
        ),
        (step(2, 1, SLURM_CPUS_PER_TASK="8"), {"nodes": 2, "workers": 7}),
        (batch(1, 1), {}),
        (torchrun(2, 4), {"devices": 4, "nodes": 2}),
        (
            step(2, 1) | torchrun(2, 8),
            {"devices": 8, "nodes": 2},
        ),  # one torchrun a node, started by srun
    ],
)
def test_what_fits_passes_without_a_word(environ: dict[str, str], wanted: dict[str, Any]) -> None:
    assert check(environ, **wanted) == []


@pytest.mark.parametrize(
    ("environ", "wanted", "said"),
    [
        (
            step(2, 8),
            {},
            [
                "trainer.devices=1",
                "2 x 8",
                "trainer=ddp trainer.devices=8 trainer.num_nodes=2",
                "#SBATCH --nodes=1\n#SBATCH --ntasks-per-node=1\n",
            ],
        ),
        (
            step(1, 8),
            {"devices": 8, "nodes": 2},
            [
                "trainer.num_nodes=2",
                "trainer.devices=8 trainer.num_nodes=1",
                "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=8",
            ],
        ),
        (
            step(1, 1),
            {"devices": 2},
            ["type trainer.devices=1 trainer.num_nodes=1", "#SBATCH --ntasks-per-node=2"],
        ),
        (
            step(2, 2, SLURM_STEP_TASKS_PER_NODE="3,1"),
            {"devices": 2, "nodes": 2},
            ["=3,1 is not the same number"],
        ),
        (batch(2, 4), {"devices": 4, "nodes": 2}, ["SLURM_NTASKS=8", "type srun before python"]),
        (
            step(1, 4, SLURM_JOB_NAME="interactive"),
            {"devices": 4},
            ["=interactive", "--job-name=d2v"],
        ),
        (
            torchrun(2, 4),
            {"devices": 8, "nodes": 1},
            [
                "2 x 4",
                "trainer=ddp trainer.devices=4 trainer.num_nodes=2",
                "torchrun --nnodes=1 --nproc-per-node=8",
            ],
        ),
        (
            {},
            {"devices": 4, "gpus": 2, "accelerator": "auto"},
            ["trainer.devices=4", "type trainer.devices=2"],
        ),
        ({}, {"accelerator": "gpu"}, ["sees, 0", "trainer.accelerator=cpu"]),
        (
            {"CUDA_VISIBLE_DEVICES": "3"},
            {"devices": 2, "gpus": 1, "accelerator": "gpu"},
            ["(CUDA_VISIBLE_DEVICES=3)"],
        ),
        (
            step(1, 8),
            {"devices": 8, "gpus": 1, "accelerator": "gpu"},
            ["#SBATCH --gpus-per-node=8", "no --gpus-per"],
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_lines_to_type(
    environ: dict[str, str], wanted: dict[str, Any], said: list[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        check(environ, **wanted)
    assert all(part in str(refused.value) for part in said), str(refused.value)


def test_advice() -> None:
    slow = step(1, 2, SLURM_CPUS_PER_TASK="2")
    del slow["OMP_NUM_THREADS"]
    cores, threads = check(slow, devices=2, workers=4)
    assert "--cpus-per-task=5" in cores and "export OMP_NUM_THREADS" in threads
    [idle] = check(step(1, 2, SLURM_GPUS_ON_NODE="8"), devices=2, gpus=8, accelerator="gpu")
    assert "8 GPUs" in idle and "--ntasks-per-node=8" in idle
    [unseen] = check(step(1, 1, SLURM_GPUS_ON_NODE="1"), accelerator="auto")
    assert "none is used" in unseen
