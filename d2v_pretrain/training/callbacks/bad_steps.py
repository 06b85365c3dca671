"""Steps whose gradient is not finite: skipped, counted, written down; too many in a row, and the
run goes back once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, distributed

from d2v_pretrain.checkpoint import file as checkpoint
from d2v_pretrain.checkpoint.file import write_text
from d2v_pretrain.checkpoint.lightning import AtomicCheckpointIO
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.training.callbacks.metrics import Meter
from d2v_pretrain.types import Batch


class BadSteps(Meter):
    """Watches ``module.bad``, a () float tensor that is 1 after a step whose gradient was not
    finite, else 0.

    The module skips such a step by itself, on the device. Here the host learns of it, at logged
    steps and saves only:
    ``bad_steps.jsonl`` gets a line per skipped step with the ids of all its samples. After
    ``patience`` in a row it is not the data: weights, teacher and optimizer go back to the newest
    checkpoint that was saved on a good step, while step number and data go on, so that the samples
    in between are not met again. The second time the run stops. What happens is a function of the
    steps alone, so a resumed run repeats it.

    Args:
        folder: the run's folder.
        patience: bad steps in a row that are borne.

    Raises:
        ConfigError: at a logged step, if going back has not helped or there is nothing to go back
            to.
    """

    def __init__(self, folder: str | Path, patience: int) -> None:
        self.folder, self.patience = Path(folder), patience
        self.file = self.folder / "bad_steps.jsonl"
        self.row: Tensor | float = (
            0.0  # bad steps in a row up to now, and the most since the last look
        )
        self.worst: Tensor | float = 0.0
        self.went_back, self.seen = False, 0
        self.ids: list[Tensor] = []
        self.recent: list[tuple[int, list[Tensor], Tensor]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take back the lines of steps that are about to be repeated."""
        self.seen = trainer.global_step
        if trainer.is_global_zero and self.file.exists():
            lines = self.file.read_text().splitlines(keepends=True)
            write_text(
                "".join(line for line in lines if json.loads(line)["step"] <= self.seen), self.file
            )

    def count(self, trainer: Trainer, module: LightningModule, batch: Batch) -> None:
        """Keep the verdict, unread, with the samples of the step."""
        self.ids.append(batch.ids)
        if trainer.global_step == self.seen:
            return
        self.seen = trainer.global_step
        bad: Tensor = module.bad  # type: ignore[assignment]
        self.row = (self.row + 1) * bad
        self.worst = torch.maximum(torch.as_tensor(self.worst, device=bad.device), self.row)
        self.recent.append((self.seen, self.ids, bad))
        self.ids = []

    def receive(self, trainer: Trainer, module: LightningModule, values: dict[str, float]) -> None:
        """Write down, go back or stop."""
        self._write(trainer)
        worst, self.worst = float(self.worst), 0.0
        if worst >= self.patience:
            self._go_back(trainer, module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """A run that goes on from here does not see these steps again."""
        self._write(trainer)

    def state_dict(self) -> dict[str, Any]:
        """How many in a row, at the step that is saved."""
        return {"row": float(self.row), "worst": float(self.worst), "went_back": self.went_back}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See ``state_dict``."""
        self.row, self.worst, self.went_back = (
            state_dict["row"],
            state_dict["worst"],
            state_dict["went_back"],
        )

    def _write(self, trainer: Trainer) -> None:
        recent, self.recent = self.recent, []
        flags = torch.stack([bad for *_, bad in recent]).tolist() if recent else []
        for (step, ids, _), bad in zip(recent, flags):
            if bad:  # on all ranks or on none: the gradient is everybody's
                everybodys = _gather(torch.cat(ids).tolist(), trainer.world_size)
                if trainer.is_global_zero:
                    with self.file.open("a") as file:
                        file.write(json.dumps({"step": step, "ids": everybodys}) + "\n")

    def _go_back(self, trainer: Trainer, module: LightningModule) -> None:
        io = trainer.strategy.checkpoint_io
        assert isinstance(io, AtomicCheckpointIO)
        io.wait()  # a file that is still being written would be there for some ranks and not for others
        trainer.strategy.barrier()
        good = None if self.went_back else self._last_good()
        if good is None:
            rule = f"was not finite in {self.patience} steps in a row, the last of them step {trainer.global_step}"
            rule += (
                ", although the run had gone back once"
                if self.went_back
                else ", and nothing good was saved before"
            )
            remedy = f"lower lr, raise warmup or set clip; {self.file} has the samples"
            raise ConfigError("loss", "nan", rule, remedy)
        trainer.strategy.load_model_state_dict(good)
        trainer.strategy.load_optimizer_state_dict(good)
        self.went_back, self.row = True, 0.0

    def _last_good(self) -> dict[str, Any] | None:
        """The newest whole checkpoint that no bad step had led up to."""
        paths = sorted(
            (self.folder / "checkpoints").glob("step=*.ckpt"), key=checkpoint.step_of, reverse=True
        )
        for path in paths:
            if checkpoint.fault(path) is None:
                content = checkpoint.read(path)
                if not content["callbacks"][self.state_key]["row"]:
                    return content
        return None


def _gather(ids: list[int], world: int) -> list[int]:
    if world == 1:
        return ids
    parts: list[Any] = [None] * world
    distributed.all_gather_object(parts, ids)
    return [i for part in parts for i in part]
