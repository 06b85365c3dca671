"""TrainingModule: the LightningModule that takes exact optimizer steps on an objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.objective.base import Objective
from d2v_pretrain.rng import fold_in, seed_default
from d2v_pretrain.schedules import Schedule
from d2v_pretrain.training.fsdp import full_tensor, shard
from d2v_pretrain.training.internals import set_batches_done, skip_step_if
from d2v_pretrain.training.optim import (
    AdamSteps,
    fairseq_eps,
    parameter_groups,
    scale_gradients,
    set_rates,
)
from d2v_pretrain.types import Batch, Output

MEMORY_TRIED = ("cuda",)  # devices on which the largest micro-batch is tried before the first step


class TrainingModule(L.LightningModule):
    """Trains an objective.

    An optimizer step sums the loss over all micro-batches of all ranks and divides by the number of
    positions predicted in them, so the result does not depend on how the step is split. Then the
    gradient is clipped, the optimizer steps and the teacher is updated. Dropout, layer drop and
    decoder noise are drawn from (seed, step, number of the micro-batch within the step), on
    whatever rank the micro-batch runs.

    Args:
        objective: what is trained.
        lr_schedule: learning rate by the number of steps done.
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
        objective: Objective,
        lr_schedule: Schedule,
        optimizer: Callable[[list[dict]], torch.optim.Optimizer],
        weight_decay: float = 0.01,
        eps: float = 1e-6,
        eps_inside: bool = True,
        weight_decay_on: str = "all",
        clip: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.objective, self.lr_schedule, self.make_optimizer = objective, lr_schedule, optimizer
        self.weight_decay, self.eps, self.eps_inside = weight_decay, eps, eps_inside
        self.weight_decay_on, self.clip, self.seed = weight_decay_on, clip, seed
        self.updates, self.samples_seen = 0, 0
        self.cursor: tuple[int, ...] = ()
        self.config = ""  # of the run, as YAML; stored in its checkpoints
        self.log_metrics: dict[str, Tensor | float] = {}
        self.last_output: Output | None = None
        self._loss, self._count = torch.zeros(()), 0
        self.bad = torch.zeros(())
        self.adam_steps = AdamSteps()

    def configure_model(self) -> None:
        """Under ``trainer=fsdp``, shard the objective. It must happen before the optimizer is
        made.
        """
        if self.device_mesh is not None:  # fsdp is the only strategy with a device mesh
            shard(self.objective, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimizer for student and predictor; ``optimizer_step`` sets its learning rate."""
        groups = parameter_groups([self.objective], self.weight_decay_on, self.objective.lr_scales)
        optimizer = self.make_optimizer(groups)
        assert optimizer.defaults.get("fused"), (
            "only torch's fused optimizers can skip a bad step without the host"
        )
        return optimizer

    def on_train_start(self) -> None:
        """Run backward passes whose gradients are thrown away.

        With several ranks there are two. DDP regroups its buckets at the second forward of a
        *process*, by the order in which gradients arrived in the first backward, and from three
        ranks on another grouping sums in another order: without them the first step of a resumed
        run would differ in its last bits from the same step of a run that never stopped.

        On a GPU there is one with the largest micro-batch, so that a lack of memory is reported
        now, not in an hour.

        Raises:
            ConfigError: the largest micro-batch does not fit the device's memory.
        """
        data, kept = self.trainer.datamodule, (self.cursor, self.samples_seen)  # type: ignore[attr-defined]
        trial = data.health_batches(2)[:1] * 2 if self.trainer.world_size > 1 else []
        trial += [data.largest()] if self.device.type in MEMORY_TRIED else []
        for batch in trial:
            try:
                self.trainer.strategy.training_step(batch.to(self.device), 0).backward()  # type: ignore[union-attr]
            except torch.OutOfMemoryError as error:
                rule = "is too large for the device's memory with inputs of "
                rule += f"{tuple(batch.inputs.shape)} ({error})"
                remedy = "lower micro_batch or max_tokens; global_batch may stay"
                raise ConfigError("micro_batch", len(batch), rule, remedy) from None
        self.zero_grad(set_to_none=True)
        self.cursor, self.samples_seen = kept
        self._loss, self._count = torch.zeros(()), 0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one micro-batch, summed over its positions.

        Lightning divides it by the number of micro-batches of a step; the factor undoes that.
        """
        accumulate = self.trainer.accumulate_grad_batches
        micro_batch = self.global_rank * accumulate + batch_idx % accumulate
        seed_default(fold_in(self.seed, self.updates, micro_batch), self.device)
        output: Output = self.objective(batch)
        self.last_output, self.cursor = output, batch.cursor
        self.samples_seen += batch.step_samples
        self._loss = self._loss.to(self.device) + output.loss_sum.detach()
        self._count += output.count
        return output.loss_sum * accumulate

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradient by the step's global count, then clip. If the gradient is not finite,
        the step will change nothing.
        """
        total = torch.stack([self._loss, self._loss.new_tensor(self._count)])
        world_size = self.trainer.world_size
        if world_size > 1:
            torch.distributed.all_reduce(total)
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        positions = total[1].clamp(min=1)  # 0 if no sample of the step could be decoded
        scale_gradients(trained, world_size / positions)  # DDP has taken the mean over ranks
        clip = float("inf") if self.clip is None else self.clip
        norm = full_tensor(torch.nn.utils.clip_grad_norm_(trained, clip)).detach()
        self.log_metrics = {"loss": total[0] / positions, "grad_norm": norm}
        self.bad = 1 - torch.isfinite(norm).float()  # equal on all ranks; not read by the host
        skip_step_if(optimizer, self.bad)
        self._loss, self._count = torch.zeros_like(self._loss), 0

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Set the learning rate, step, and update the teacher.

        A step that is skipped, because its gradient is not finite, counts in the schedules of
        learning rate and teacher and in the order of the data, as any step of the run (Lightning's
        ``global_step`` counts it, too); it changes neither Adam nor the teacher.

        The teacher is updated here and not in a batch-end hook, because those run once per
        micro-batch and after the checkpoint is written.
        """
        lr, beta2 = self.lr_schedule(self.updates), optimizer.param_groups[0]["betas"][1]
        eps = self.eps
        if self.eps_inside:
            eps = fairseq_eps(eps, beta2, self.adam_steps.read(optimizer) + 1)
        set_rates(optimizer, lr, self.weight_decay, eps)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.adam_steps.note(optimizer)
        self.updates += 1
        self.log_metrics |= {"lr": lr} | self.objective.after_step(self.updates, self.bad)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a run needs besides weights: configuration, position in the data, counters."""
        position = {
            "updates": self.updates,
            "samples": self.samples_seen,
            "cursor": list(self.cursor),
            "data": self.trainer.datamodule.fingerprint,  # type: ignore[attr-defined]
            "seed": self.seed,
        }
        checkpoint |= {"position": position, "config": self.config}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue after the last micro-batch that was trained on.

        Lightning finds the end of a step by counting micro-batches. This start may have another
        number of ranks, and then another number of micro-batches per step on each, so the count is
        computed anew.

        Raises:
            ConfigError: the data changed since the checkpoint was written, so that the position in
                them means other samples.
        """
        position, data = checkpoint["position"], self.trainer.datamodule.fingerprint  # type: ignore[attr-defined]
        if data != position["data"]:
            rule = f"is {data}, but this run was started on {position['data']}, and the position "
            rule += "in the data does not carry over"
            remedy = "restore the same files, or start a new run with name=… init_from=…"
            raise ConfigError("data", "", rule, remedy)
        self.updates, self.samples_seen = position["updates"], position["samples"]
        self.cursor = tuple(position["cursor"])
        self.trainer.datamodule.cursor = self.cursor  # type: ignore[attr-defined]
        set_batches_done(checkpoint, self.updates * self.trainer.accumulate_grad_batches)
