"""FSDP2: each rank keeps its share of weights, teacher and optimizer; checkpoints stay whole
ordinary files."""

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
from torch.utils._pytree import tree_map_only

from d2v_pretrain.objective.data2vec import Data2Vec
from d2v_pretrain.objective.supervised import Supervised


class Sharded(ModelParallelStrategy):
    """Lightning's FSDP2 strategy with checkpoints that any strategy and any number of ranks can go
    on from.

    Lightning's own way around a full checkpoint does not do: it reads past our checksums, and it
    numbers optimizer state by the model's parameters, which mixes up states as soon as there are
    several parameter groups. Here a checkpoint is what one process would have written: every share
    is unsharded on saving, cut again on loading.

    Args:
        timeout: for how long a rank waits for the others before it gives up.
    """

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """By ``load_optimizer_state_dict``, as always."""
        return True

    def setup_environment(self) -> None:
        """All ranks share one model."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole weights, on the host of the first rank; every rank must call."""
        return self._whole(Strategy.lightning_module_state_dict(self))

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Whole moments, numbered as the optimizer numbers them; every rank must call."""
        return self._whole(Strategy.optimizer_state(self, optimizer))

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The whole file, checked, on every rank."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Every rank takes its share of whole weights."""
        assert self.lightning_module is not None
        shares = dict(self.lightning_module.named_parameters())
        state = {
            name: _cut(value, shares.get(name)) for name, value in checkpoint["state_dict"].items()
        }
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Every rank takes its share of whole moments; those of a parameter lie as the parameter
        does."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"]):
            shares = [p for group in optimizer.param_groups for p in group["params"]]
            numbers = [n for group in saved["param_groups"] for n in group["params"]]
            state = {
                n: {key: _cut(value, share) for key, value in saved["state"][n].items()}
                for n, share in zip(numbers, shares)
                if n in saved["state"]
            }
            optimizer.load_state_dict({**saved, "state": state})

    def _whole(self, state: dict[str, Any]) -> dict[str, Any]:
        def gather(share: Tensor) -> Tensor | None:
            all_of_it = full_tensor(share)  # by all ranks, one tensor at a time
            return all_of_it.cpu() if self.is_global_zero else None

        return tree_map_only(DTensor, gather, state)


def full_tensor(share: Tensor) -> Tensor:
    """An ordinary tensor; of one that is shared out, every rank must ask."""
    return share.full_tensor() if isinstance(share, DTensor) else share


def _cut(value: Any, share: Tensor | None) -> Any:
    if (
        not isinstance(share, DTensor)
        or not isinstance(value, Tensor)
        or value.shape != share.shape
    ):
        return value
    return distribute_tensor(
        value.to(share.device), share.device_mesh, share.placements, src_data_rank=None
    )


def shard(objective: Data2Vec | Supervised, mesh: Any) -> None:
    """Share an objective out over the ranks of ``mesh``: block by block, and the rest in one piece.

    Student blocks that layer drop may skip belong to the rest: ranks skip different ones, and
    gathering a block takes all of them."""
    for encoder in objective.encoders:
        if encoder is not objective.student or not encoder.layer_drop:
            for block in encoder.blocks:
                fully_shard(block, mesh=mesh)
    # Its output is the first tensor that backward meets. What the objective returns is none, and
    # without one there is nothing that tells FSDP of a backward pass where blocks belong to the
    # rest.
    fully_shard(objective.predictor, mesh=mesh)
    fully_shard(objective, mesh=mesh)


@contextmanager
def unsharded(objective: nn.Module) -> Iterator[None]:
    """Inside, parts of a sharded objective may be used by themselves, by all ranks alike; else this
    does nothing."""
    if not isinstance(objective, FSDPModule):
        yield
        return
    objective.unshard()  # what is not in a block, such as the stems; blocks see to themselves
    try:
        yield
    finally:
        objective.reshard()
