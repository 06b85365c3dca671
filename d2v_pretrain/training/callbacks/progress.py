"""The progress bar: loss, samples a second, time left; plain lines where there is no terminal."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich import get_console

from d2v_pretrain.training.callbacks.metrics import Meter

# Logged number -> its name on the screen, short enough for a bar of 80 columns, and its format.
SHOWN = {
    "loss": ("loss", "{:.3f}"),
    "loss_relative": ("rel", "{:.2f}"),
    "samples_per_s": ("samples/s", "{:.1f}"),
    "data_wait": ("wait", "{:.0%}"),
    "padding": ("pad", "{:.0%}"),
    "mfu": ("MFU", "{:.1%}"),
}


def summary(values: dict[str, float]) -> dict[str, str]:
    """What of a logged step is worth a place on the screen: name -> text."""
    shown = {name: form.format(values[key]) for key, (name, form) in SHOWN.items() if key in values}
    if "eta_s" in values:
        shown["left"] = str(timedelta(seconds=round(values["eta_s"])))
    return shown


class Progress(RichProgressBar, Meter):
    """Lightning's Rich bar, counting optimizer steps out of all of the run, with the numbers of the
    last logged step.

    ``rel`` is the loss over that of predicting zero, ``wait`` the share of time spent waiting for
    data, ``pad`` the share of the inputs that is padding. A log file is no place for a bar: without
    a terminal every logged step is printed as a line instead."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=4)
        self.shown: dict[str, str] = {}

    @property
    def total_train_batches(self) -> float:
        """Steps of the run; an endless stream has no epochs to count."""
        return self.trainer.max_steps if self.trainer.max_steps > 0 else float("inf")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Move the bar; costs nothing of the device."""
        if not self.is_disabled and self.train_progress_bar_id is None:
            self._initialize_train_progress_bar_id()
        self._update(self.train_progress_bar_id, trainer.global_step)
        self._update_metrics(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar, if somebody can see it."""
        if not get_console().is_terminal:
            self.disable()
        super().on_train_start(trainer, pl_module)

    def receive(self, trainer: Trainer, module: LightningModule, values: dict[str, float]) -> None:
        """Show the step that was just logged."""
        self.shown = summary(values)
        if not get_console().is_terminal and trainer.is_global_zero:
            numbers = "  ".join(f"{name} {text}" for name, text in self.shown.items())
            line = f"step {trainer.global_step:,}/{trainer.max_steps:,}  {numbers}"
            get_console().print(line, soft_wrap=True, highlight=False)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Texts only; Lightning's own would ask the device for the loss."""
        return {name: text for name, text in self.shown.items() if name != "left"}

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Bar, steps, elapsed and remaining time; there is one thing to describe, and samples/s
        tells the speed."""
        bar, *rest = super().configure_columns(trainer)[1:-1]
        bar.bar_width = 10  # Rich would wrap the numbers before it shortens the bar
        return [bar, *rest]

    def _get_train_description(self, current_epoch: int) -> str:
        return "Pretraining"
