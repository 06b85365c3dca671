"""The LightningModule around the objective: rates, one exact optimizer step, the teacher's update,
what is logged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.objective.data2vec import Data2Vec
from d2v_pretrain.objective.statistics import spread
from d2v_pretrain.objective.supervised import Supervised
from d2v_pretrain.rng import fold_in, seed_default
from d2v_pretrain.schedules import Schedule
from d2v_pretrain.training.fsdp import full_tensor, shard
from d2v_pretrain.training.optim import fairseq_eps, parameter_groups, scale_gradients, set_rates
from d2v_pretrain.types import Batch, Output

MEMORY_TRIED = ("cuda",)  # devices on which the largest micro-batch is tried before the first step


class Pretrain(L.LightningModule):
    """Trains an objective.

    An optimizer step sums the loss over all micro-batches of all ranks and divides by the number of
    positions predicted in them, so the result does not depend on how the step was cut up. Then:
    clip, optimizer, teacher. Dropout, layer drop and decoder noise are drawn from (seed, step,
    micro_batch), where a slot is a micro-batch of the step, wherever it runs.

    Args:
        objective: what is trained.
        rate: learning rate of the updates done.
        optimizer: makes a torch optimizer with ``fused=True`` from parameter groups.
        weight_decay: decoupled weight decay.
        eps: of Adam.
        eps_inside: add eps before the bias correction, as fairseq's Adam does (all but data2vec 1
            vision).
        weight_decay_on: which parameters decay, see ``parameter_groups``.
        clip: largest norm of the gradient, None for no clipping.
        seed: of everything drawn in training.
    """

    def __init__(
        self,
        objective: Data2Vec | Supervised,
        rate: Schedule,
        optimizer: Callable[[list[dict]], torch.optim.Optimizer],
        weight_decay: float = 0.01,
        eps: float = 1e-6,
        eps_inside: bool = True,
        weight_decay_on: str = "all",
        clip: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.objective, self.rate, self.make_optimizer = objective, rate, optimizer
        self.weight_decay, self.eps, self.eps_inside = weight_decay, eps, eps_inside
        self.weight_decay_on, self.clip, self.seed = weight_decay_on, clip, seed
        self.updates, self.samples_seen = 0, 0
        self.cursor: tuple[int, ...] = ()
        self.config = ""  # of the run, as YAML; goes into its checkpoints
        self.log_metrics: dict[str, Tensor | float] = {}
        self.last_output: Output | None = None
        self._loss, self._count = torch.zeros(()), 0
        self.bad = torch.zeros(())

    def configure_model(self) -> None:
        """Under ``trainer=fsdp``, the one strategy with a mesh of ranks: share everything out
        before the optimizer."""
        if self.device_mesh is not None:
            shard(self.objective, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimizer over student and predictor; its rates are written by ``optimizer_step``."""
        groups = parameter_groups([self.objective], self.weight_decay_on, self.objective.lr_scales)
        optimizer = self.make_optimizer(groups)
        assert optimizer.defaults.get("fused"), (
            "only torch's fused optimizers can skip a bad step on the device"
        )
        return optimizer

    def on_train_start(self) -> None:
        """Backward passes that count for nothing: two with several ranks, so that all steps sum in
        one order.

        DDP regroups its buckets at the second forward of a *process*, by the order in which
        gradients arrived in the first backward. From three ranks on, another grouping is another
        order of sums: the first step of a resumed run would differ in its last bits from the same
        step of a run that was never stopped. On a GPU another one with the largest micro-batch:
        what does not fit its memory is told now, not in an hour."""
        data, kept = self.trainer.datamodule, (self.cursor, self.samples_seen)  # type: ignore[attr-defined]
        trial = data.health_batches(2)[:1] * 2 if self.trainer.world_size > 1 else []
        trial += [data.largest()] if self.device.type in MEMORY_TRIED else []
        for batch in trial:
            self._throw_away(batch)
        self.zero_grad(set_to_none=True)
        self.cursor, self.samples_seen = kept
        self._loss, self._count = torch.zeros(()), 0

    def _throw_away(self, batch: Batch) -> None:
        try:
            self.trainer.strategy.training_step(batch.to(self.device), 0).backward()  # type: ignore[union-attr]
        except torch.OutOfMemoryError as error:
            rule = f"is too much for the device's memory with inputs of {tuple(batch.inputs.shape)} ({error})"
            remedy = "lower micro_batch or max_tokens; global_batch may stay"
            raise ConfigError("micro_batch", len(batch), rule, remedy) from None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The summed loss of one micro-batch; Lightning's division by the number of micro-batches
        is undone."""
        accumulate = self.trainer.accumulate_grad_batches
        micro_batch = self.global_rank * accumulate + batch_idx % accumulate
        seed_default(fold_in(self.seed, self.updates, micro_batch), self.device)
        output = self.objective(batch)
        self.last_output, self.cursor = output, batch.cursor
        self.samples_seen += batch.step_samples
        self._loss, self._count = (
            self._loss.to(self.device) + output.loss.detach(),
            self._count + output.count,
        )
        return output.loss * accumulate

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradient by the step's global count, then clip; a step that is not finite will
        be skipped."""
        total = torch.stack([self._loss, self._loss.new_tensor(self._count)])
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(total)
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        positions = total[1].clamp(min=1)  # none if no sample of the step could be decoded
        scale_gradients(
            trained, self.trainer.world_size / positions
        )  # DDP has taken the mean over ranks
        norm = full_tensor(
            torch.nn.utils.clip_grad_norm_(
                trained, float("inf") if self.clip is None else self.clip
            )
        ).detach()
        self.log_metrics = {"loss": total[0] / positions, "grad_norm": norm}
        self.bad = (
            1 - torch.isfinite(norm).float()
        )  # the same on every rank, and no rank asks its device
        optimizer.found_inf = self.bad  # type: ignore[attr-defined]  # torch's fused optimizers then change nothing
        self._loss, self._count = torch.zeros_like(self._loss), 0

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Write the rates of this update, step, and let the teacher follow at once.

        The teacher moves here and not in a batch-end hook: those run per micro-batch, and after the
        checkpoint is written."""
        lr, beta2 = self.rate(self.updates), optimizer.param_groups[0]["betas"][1]
        eps = fairseq_eps(self.eps, beta2, self.updates + 1) if self.eps_inside else self.eps
        set_rates(optimizer, lr, self.weight_decay, eps)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.updates += 1
        self.log_metrics |= {"lr": lr} | self.objective.after_step(self.updates)

    def statistics(self) -> dict[str, Tensor]:
        """Of the last micro-batch, as device tensors: spread of targets and predictions, loss
        terms, relative loss.

        ``loss_relative`` is the regression loss over that of predicting zero. It tells learning
        from targets that have become larger or smaller: the loss itself may well rise while the
        teacher's layers come to agree."""
        output = self.last_output
        assert output is not None and isinstance(self.objective, Data2Vec)
        stats = {
            f"loss_{name}": value / output.count
            for name, value in output.losses.items()
            if len(output.losses) > 1
        }
        trivial = self.objective.loss(torch.zeros_like(output.target), output.target).sum()
        stats["loss_relative"] = output.losses["regression"] / trivial
        for name, rows in (("target", output.target), ("pred", output.pred)):
            stats[f"{name}_std"], stats[f"{name}_position_std"] = spread(rows, output.position)
        return stats

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the configuration, the position in the data and the counters: all that a run needs
        besides weights."""
        position = {
            "updates": self.updates,
            "samples": self.samples_seen,
            "cursor": list(self.cursor),
            "data": self.trainer.datamodule.fingerprint,  # type: ignore[attr-defined]
            "seed": self.seed,
        }
        checkpoint |= {"position": position, "config": self.config}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the position; the stream starts behind the last trained micro-batch.

        Lightning knows where a step ends by the micro-batches that it has counted. With another
        number of ranks a step is another number of them on each, so they are counted anew: updates
        x micro-batches of a step here.

        Raises:
            ConfigError: the data is no longer what the position was counted in.
        """
        position, data = checkpoint["position"], self.trainer.datamodule.fingerprint  # type: ignore[attr-defined]
        if data != position["data"]:
            rule = f"is {data}, but this run was started on {position['data']}: its position means nothing here"
            raise ConfigError(
                "data",
                "",
                rule,
                "give back the same files, or start a new run with name=… init_from=…",
            )
        self.updates, self.samples_seen = position["updates"], position["samples"]
        self.cursor = tuple(position["cursor"])
        self.trainer.datamodule.cursor = self.cursor  # type: ignore[attr-defined]
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counters in (progress["current"], progress["total"]):
            counters |= dict.fromkeys(counters, self.updates * self.trainer.accumulate_grad_batches)
