"""Progress: a bar with loss, samples per second and time left; without a terminal, plain lines."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich import get_console

from d2v_pretrain.training.callbacks.metrics import Meter
from d2v_pretrain.training.log import log

# Logged number -> its name on the screen (a bar must fit into 80 columns) and its format.
SHOWN = {
    "loss": ("loss", "{:.3f}"),
    "loss_relative": ("rel", "{:.2f}"),
    "samples_per_s": ("samples/s", "{:.1f}"),
    "data_wait": ("wait", "{:.0%}"),
    "padding": ("pad", "{:.0%}"),
    "mfu": ("MFU", "{:.1%}"),
}


def summary(values: dict[str, float]) -> dict[str, str]:
    """The numbers of a logged step that are shown on the screen, as name -> text."""
    shown = {name: form.format(values[key]) for key, (name, form) in SHOWN.items() if key in values}
    if "eta_s" in values:
        shown["left"] = str(timedelta(seconds=round(values["eta_s"])))
    return shown


class Progress(RichProgressBar, Meter):
    """Lightning's Rich bar, which counts the optimizer steps of the whole run and shows the numbers
    of the last logged step.

    ``rel`` is the loss divided by the loss of predicting zero, ``wait`` the share of time spent
    waiting for data, ``pad`` the share of the inputs that is padding. Without a terminal, for
    example in a log file, each logged step is printed as a line instead.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=4)
        self.shown: dict[str, str] = {}

    @property
    def total_train_batches(self) -> float:
        """Number of steps of the run: the data has no end, so there are no epochs to count."""
        return self.trainer.max_steps if self.trainer.max_steps > 0 else float("inf")

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move the bar to the number of optimizer steps; Lightning's would count micro-batches."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, trainer.global_step - 1)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar if there is a terminal."""
        if not get_console().is_terminal:
            self.disable()
        super().on_train_start(trainer, pl_module)

    def receive(self, trainer: Trainer, module: LightningModule, values: dict[str, float]) -> None:
        self.shown = summary(values)
        if not get_console().is_terminal and trainer.is_global_zero:
            numbers = "  ".join(f"{name} {text}" for name, text in self.shown.items())
            log(f"step {trainer.global_step:,}/{trainer.max_steps:,}  {numbers}")

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The texts to show. Lightning's own would make the host wait for the loss."""
        return {name: text for name, text in self.shown.items() if name != "left"}

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Bar, steps, elapsed and remaining time, without Lightning's description and speed."""
        bar, *rest = super().configure_columns(trainer)[1:-1]
        bar.bar_width = 10  # Rich would wrap the numbers before it shortens the bar
        return [bar, *rest]
