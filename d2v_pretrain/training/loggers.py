"""TensorBoard and Weights & Biases as views of ``metrics.jsonl``: after a kill each step is there
once.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class TensorBoard(TensorBoardLogger):
    """TensorBoard; what a killed run has logged after the step that it goes on from is purged.

    Args:
        save_dir, version: the events are in the folder ``save_dir/version``.
        step: that the run goes on from.
        logged: not used; the steps in between are shown as they are logged again.
    """

    def __init__(self, save_dir: str, version: str, step: int, logged: int) -> None:
        super().__init__(save_dir, name=None, version=version, purge_step=step + 1)

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Lightning's hides a full disk behind a ValueError."""
        for name, value in metrics.items():
            self.experiment.add_scalar(name, value, step)


class WeightsAndBiases(WandbLogger):
    """Weights & Biases, with our steps as its steps. It cannot take back what was logged, so that
    steps that a killed run has logged before are not sent again; their numbers are the same.

    Args:
        step: that the run goes on from.
        logged: last step that was logged before this start.
        settings: as in Lightning's ``WandbLogger``.
    """

    def __init__(self, step: int, logged: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.logged = logged

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if step is None or step > self.logged:
            self.experiment.log({**metrics, "trainer/global_step": step}, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run there: the next run of a sweep in this process is another."""
        super().finalize(status)
        import wandb

        if wandb.run is not None:
            wandb.finish(0 if status == "success" else 1)
