"""TensorBoard and Weights & Biases as views of ``metrics.jsonl``: after a kill each step is there
once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from d2v_pretrain.atomic_files import json_lines

_BLOCK, _HEAD, _BEGIN = 32768, 7, 7  # bytes in a file of Weights & Biases, see ``_records``
_WHOLE, _LAST = 1, 4  # kinds of records there


class TensorBoard(TensorBoardLogger):
    """TensorBoard; what a killed run has logged after the step that it goes on from is purged.

    Args:
        save_dir, version: the events are in the folder ``save_dir/version``.
        step: that the run goes on from.
    """

    def __init__(self, save_dir: str, version: str, step: int) -> None:
        super().__init__(save_dir, name=None, version=version, purge_step=step + 1)

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Lightning's would hide a full disk behind a ValueError."""
        for name, value in metrics.items():
            self.experiment.add_scalar(name, value, step)


class WeightsAndBiases(WandbLogger):
    """Weights & Biases, with our steps as its steps.

    It cannot take back what it has, and a kill loses what was on its way. So the first line of each
    start is preceded by those of ``metrics.jsonl`` that are missing there, and what is there
    already is not sent again.

    Args:
        save_dir: the run's folder.
        step: that the run goes on from.
        settings: as in Lightning's ``WandbLogger``.
    """

    def __init__(self, save_dir: str, step: int, **settings: Any) -> None:
        super().__init__(save_dir=save_dir, **settings)
        self.folder = Path(save_dir)
        self.there: set[int] | None = None  # steps; None before the first line of this start

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        assert step is not None, "a line needs its step"
        rows = [{"step": step, **metrics}]
        if self.there is None:
            self.there = self._steps_there()
            earlier = json_lines(self.folder / "metrics.jsonl")[0]
            rows = [*(row for row in earlier if row["step"] < step), *rows]
        for row in rows:
            if row["step"] not in self.there:
                numbers = {key: value for key, value in row.items() if value is not None}
                numbers["trainer/global_step"] = numbers.pop("step")
                self.experiment.log(numbers, step=row["step"], commit=True)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run there: the next run of a sweep in this process is another."""
        super().finalize(status)
        import wandb

        if wandb.run is not None:
            wandb.finish(0 if status == "success" else 1)

    def _steps_there(self) -> set[int]:
        """The steps that earlier starts have logged: as the server says, or in files if it is
        offline."""
        if not self.experiment.offline:
            return {*range(self.experiment.step)}
        files = self.folder.glob(f"wandb/offline-run-*-{self.experiment.id}/*.wandb")
        return {step for file in files for step in offline_steps(file)}


def offline_steps(file: Path) -> Iterator[int]:
    """The steps in a file that Weights & Biases writes offline, up to where a kill has cut it."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    for content in _records(file.read_bytes()):
        try:
            record = Record.FromString(content)
        except DecodeError:
            return
        if record.WhichOneof("record_type") == "history":
            yield record.history.step.num


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a file in the format of LevelDB's log: blocks of 32 KiB; before each part of a
    record its checksum (4 bytes), size (2) and kind (1)."""
    place, parts = _BEGIN, b""
    while place + _HEAD <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _HEAD:  # the rest of a block is empty
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + _HEAD : place + _HEAD + size]
        place += _HEAD + size
        if kind in (_WHOLE, _LAST):
            yield parts
            parts = b""
