"""Everything private of Lightning and torch that we use: one small function each.

Checked against Lightning 2.6 and torch 2.11. ``tests/training/test_internals.py`` fails when a
library no longer has what is used here, or gives it another meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, distributed
from torch.utils._pytree import tree_map_only


def disable_sigterm_handling(trainer: Trainer) -> None:
    """Keep Lightning from handling signals; call it in ``Callback.setup``.

    Its SIGTERM handler calls a collective wherever it interrupts the process, and with several
    ranks it adds a broadcast and a wait for the device before every batch (lightning#21406,
    #21487).
    """
    trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]


def _nothing() -> None:
    pass


def collective_timeout(strategy: Strategy) -> timedelta | None:
    """For how long a rank waits for the others (``trainer.strategy.timeout``); None on one rank.

    A process group that is made later does not inherit it.
    """
    return getattr(strategy, "_timeout", None)


def use_all_ranks_for_data(strategy: ModelParallelStrategy) -> None:
    """Shard one model over the ranks of all nodes; call it before ``setup_environment``.

    By default Lightning replicates the model on each node.
    """
    strategy._data_parallel_size = strategy.num_nodes * strategy.num_processes


def set_batches_done(checkpoint: dict[str, Any], batches: int) -> None:
    """Write into a Lightning checkpoint how many micro-batches this rank has trained on.

    Lightning tells the end of an optimizer step from this number.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counters in (progress["current"], progress["total"]):
        counters |= dict.fromkeys(counters, batches)


def default_store() -> Any:
    """The key-value store through which the ranks found each other (TCP, on rank 0)."""
    return distributed.distributed_c10d._get_default_store()


def skip_step_if(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """Make the next step of a fused optimizer change nothing if ``bad`` is 1.

    ``bad`` is a () float tensor on the device, which no host has to read. torch's GradScaler uses
    the same attribute.
    """
    optimizer.found_inf = bad  # type: ignore[attr-defined]


def multiply_in_place(tensors: list[Tensor], factor: Tensor | float) -> None:
    """Multiply all tensors by a number or a () tensor, in one kernel launch for many of them."""
    torch._foreach_mul_(tensors, factor)


def map_tensors(kind: type[Tensor], change: Callable[[Any], Any], tree: Any) -> Any:
    """A copy of nested dicts and lists with ``change`` applied to all tensors of one class."""
    return tree_map_only(kind, change, tree)
