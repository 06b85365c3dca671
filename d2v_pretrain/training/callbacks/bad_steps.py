"""BadSteps: records steps whose gradient is not finite; after too many in a row, the run goes back
to a checkpoint once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, distributed

from d2v_pretrain.atomic_files import append, mend
from d2v_pretrain.checkpoint import file as checkpoint
from d2v_pretrain.checkpoint import ownership
from d2v_pretrain.checkpoint.lightning import AtomicCheckpointIO
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.training.callbacks.metrics import Meter
from d2v_pretrain.training.log import log, warn
from d2v_pretrain.types import Batch


class BadSteps(Meter):
    """Watches ``module.bad``, a () float tensor that is 1 after a step whose gradient was not
    finite, else 0.

    The module skips such a step itself, on the device. This callback reads the flags at logged
    steps and saves only, and writes a line into ``bad_steps.jsonl`` for each skipped step with the
    ids of all its samples.

    ``patience`` bad steps in a row are not the fault of single samples. Then weights, teacher and
    optimizer are restored from the newest checkpoint. Step number and data go on, so the samples in
    between are not seen again. The second time the run stops. All of this depends on the steps
    alone, so a resumed run does the same again.

    ``Saving`` asks ``in_doubt``, and saves after a good step only. So checkpoints are good, and a
    run that was stopped goes on from before its bad steps.

    Args:
        folder: the run's folder.
        patience: bad steps in a row before the run goes back.

    Raises:
        ConfigError: at a logged step, if going back did not help or there is no checkpoint to go
            back to.
    """

    def __init__(self, folder: str | Path, patience: int) -> None:
        self.folder, self.patience = Path(folder), patience
        self.file = self.folder / "bad_steps.jsonl"
        self.row: Tensor | float = 0.0  # bad steps in a row up to now
        self.worst: Tensor | float = 0.0  # the most in a row since the last logged step
        self.went_back, self.seen = False, 0
        self.ids: list[Tensor] = []
        self.recent: list[tuple[int, list[Tensor], Tensor]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the lines of steps that are about to be repeated."""
        self.seen = trainer.global_step
        if trainer.is_global_zero:
            for told in mend(self.file, lambda line: line["step"] <= self.seen)[1]:
                warn(told)

    def count(self, trainer: Trainer, module: LightningModule, batch: Batch) -> None:
        """Store the flag of the step, which is not read yet, with the ids of its samples."""
        self.ids.append(batch.ids)
        if trainer.global_step == self.seen:
            return
        self.seen = trainer.global_step
        bad: Tensor = module.bad  # type: ignore[assignment]
        self.row = (self.row + 1) * bad
        self.worst = torch.maximum(torch.as_tensor(self.worst, device=bad.device), self.row)
        self.recent.append((self.seen, self.ids, bad))
        self.ids = []

    @property
    def in_doubt(self) -> bool:
        """Whether the run is not to be saved now: the last step was bad, or so many were that the
        run goes back at the next logged step. Waits for the device.
        """
        return float(self.row) > 0 or float(self.worst) >= self.patience

    def receive(self, trainer: Trainer, module: LightningModule, values: dict[str, float]) -> None:
        self._write(trainer)
        worst, self.worst = float(self.worst), 0.0
        if worst >= self.patience:
            self._go_back(trainer, module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the lines now: a run that continues from here does not see these steps again."""
        self._write(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"row": float(self.row), "worst": float(self.worst), "went_back": self.went_back}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.row, self.worst = state_dict["row"], state_dict["worst"]
        self.went_back = state_dict["went_back"]

    def _write(self, trainer: Trainer) -> None:
        recent, self.recent = self.recent, []
        flags = torch.stack([bad for *_, bad in recent]).tolist() if recent else []
        skipped = [(step, ids) for (step, ids, _), bad in zip(recent, flags) if bad]
        if skipped:
            ownership.confirm()
            steps = ", ".join(f"{step:,}" for step, _ in skipped)
            rule = "gradient not finite, so nothing was learned"
            log(f"[yellow]skipped steps {steps}: {rule}; their samples are in {self.file}[/]")
        for step, ids in skipped:
            parts: list[Any] = [torch.cat(ids).tolist()]  # of each rank
            if trainer.world_size > 1:  # all ranks get here: the flag is the same on all of them
                parts *= trainer.world_size
                distributed.all_gather_object(parts, parts[0])
            if trainer.is_global_zero:
                line = {"step": step, "ids": [i for part in parts for i in part]}
                append(self.file, json.dumps(line) + "\n")

    def _go_back(self, trainer: Trainer, module: LightningModule) -> None:
        io = trainer.strategy.checkpoint_io
        assert isinstance(io, AtomicCheckpointIO)
        io.wait()  # else some ranks might see a file that is still being written, and others not
        trainer.strategy.barrier()
        good = None if self.went_back else self._last_good()
        if good is None:
            rule = f"was not finite in {self.patience} steps in a row, up to step "
            again = "although the run had gone back once"
            none = "and no checkpoint was saved before them"
            rule += f"{trainer.global_step}, {again if self.went_back else none}"
            remedy = "add resume=with_changes with a lower lr, a longer warmup or a clip; "
            remedy += f"{self.file} has the samples"
            raise ConfigError("loss", "nan", rule, remedy)
        trainer.strategy.load_model_state_dict(good)
        trainer.strategy.load_optimizer_state_dict(good)
        many = f"{self.patience} or more steps in a row were skipped"
        back = f"weights, teacher and optimizer are again those of step {good['global_step']:,}"
        log(f"[yellow]{many}: {back}. The data go on[/]")
        self.went_back, self.row = True, 0.0

    def _last_good(self) -> dict[str, Any] | None:
        """The newest undamaged checkpoint that was saved after a good step."""
        paths = (self.folder / "checkpoints").glob("step=*.ckpt")
        for path in sorted(paths, key=checkpoint.step_of, reverse=True):
            if checkpoint.fault(path) is None:
                content = checkpoint.read(path)
                if not content["callbacks"][self.state_key]["row"]:
                    return content
        return None
