"""FSDP2: each rank keeps a shard of weights, teacher and optimizer; checkpoints are the same files
as without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from d2v_pretrain.objective.base import Objective
from d2v_pretrain.training.internals import map_tensors, use_all_ranks_for_data
from d2v_pretrain.training.optim import moments_only


class Sharded(ModelParallelStrategy):
    """Lightning's FSDP2 strategy with checkpoints that any strategy and any number of ranks can go
    on from.

    A checkpoint is the file that one process would have written: shards are gathered on saving and
    distributed again on loading. Lightning's own full checkpoints cannot be used. They are read
    without our checksums, and their optimizer state is numbered by the model's parameters, which
    mixes up states where there are several parameter groups.

    Args:
        timeout: how long a rank waits for the others before it gives up.
    """

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Restore the optimizer by ``load_optimizer_state_dict``."""
        return True

    def setup_environment(self) -> None:
        use_all_ranks_for_data(self)
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The unsharded weights, on the host of rank 0. A collective: every rank must call it."""
        return self._gathered(Strategy.lightning_module_state_dict(self))

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Full optimizer state, numbered as by the optimizer. A collective: every rank must call
        it.
        """
        return self._gathered(Strategy.optimizer_state(self, optimizer))

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The full file, checked, on every rank."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load this rank's shards of full weights."""
        assert self.lightning_module is not None
        parameters = dict(self.lightning_module.named_parameters())
        full = checkpoint["state_dict"]
        state = {name: _shard_like(parameters.get(name), value) for name, value in full.items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this rank's shards of a full optimizer state; moments are sharded like their
        parameter.
        """
        groups = self.lightning_module.parameter_groups  # type: ignore[union-attr]
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"]):
            saved = moments_only(optimizer, saved, groups)  # type: ignore[arg-type]
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            numbers = [n for group in saved["param_groups"] for n in group["params"]]
            state = {
                n: {key: _shard_like(p, value) for key, value in saved["state"][n].items()}
                for n, p in zip(numbers, parameters)
                if n in saved["state"]
            }
            optimizer.load_state_dict({**saved, "state": state})

    def _gathered(self, state: dict[str, Any]) -> dict[str, Any]:
        def gather(tensor: DTensor) -> Tensor | None:
            full = tensor.full_tensor()  # on all ranks, one tensor at a time
            return full.cpu() if self.is_global_zero else None

        return map_tensors(DTensor, gather, state)


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor. For a DTensor this is a collective: every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _shard_like(parameter: Tensor | None, value: Any) -> Any:
    """``value``, sharded as ``parameter`` is; unchanged if it is no tensor of that shape."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor):
        return value
    if value.shape != parameter.shape:
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(value.to(parameter.device), mesh, placements, src_data_rank=None)


def shard(objective: Objective, mesh: Any) -> None:
    """Shard an objective over the ranks of ``mesh``: each block by itself, the rest in one unit.

    Student blocks that layer drop may skip belong to the rest, because ranks skip different blocks
    and gathering one is a collective.
    """
    for encoder in objective.encoders:
        if encoder is not objective.student or not encoder.layer_drop:
            for block in encoder.blocks:
                fully_shard(block, mesh=mesh)
    # FSDP learns of a backward pass through the output tensors of its units. An objective returns
    # an Output and no tensor, so the predictor, whose output backward reaches first, is a unit.
    fully_shard(objective.predictor, mesh=mesh)
    fully_shard(objective, mesh=mesh)


@contextmanager
def unsharded(objective: nn.Module) -> Iterator[None]:
    """Allow parts of a sharded objective to be called on their own, by all ranks alike.

    Without FSDP this does nothing.
    """
    if not isinstance(objective, FSDPModule):
        yield
        return
    # Everything outside of the blocks, such as stems; blocks gather their own parameters.
    objective.unshard()
    try:
        yield
    finally:
        objective.reshard()
