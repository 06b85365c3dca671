"""How Lightning writes and reads our checkpoint files, in the training thread or beside it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from d2v_pretrain.checkpoint import file as files
from d2v_pretrain.checkpoint import ownership


class AtomicCheckpointIO(CheckpointIO):
    """Makes Lightning use ``checkpoint.file.write`` and ``read``:
    ``Trainer(plugins=[AtomicCheckpointIO()])``.

    Lightning's own writer is not atomic if the run's folder is on another file system than the
    temporary directory.

    Args:
        asynchronous: training waits only until the state is copied into host memory, and a thread
            writes the file. The memory of the copy (the size of a checkpoint) is used again by the
            next save. If the process is killed while the file is written, only this checkpoint is
            lost. Errors of the thread are raised by the next save, or by ``wait``.
        then: function called with the path of each file after it was written, on the writing
            thread.
    """

    def __init__(
        self, asynchronous: bool = False, then: Callable[[Path], None] | None = None
    ) -> None:
        self.asynchronous, self.then = asynchronous, then
        self.buffers: dict[str, Tensor] = {}
        self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[None] | None = None

    def reserve(self, state: dict[str, Any]) -> None:
        """Allocate the host memory for the weights now, so that the first save does not have to.

        Args:
            state: the module's ``state_dict``.
        """
        _held({"state_dict": state}, self.buffers, "")

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint, on rank 0 only. See ``checkpoint.file.write``."""
        assert storage_options is None, "checkpoints are local files"
        self.wait()
        if not self.asynchronous:
            self._write(checkpoint, Path(path))
            return
        held = _held(checkpoint, self.buffers, "")
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # copies to page-locked memory are under way
        self.pending = self.writer.submit(self._write, held, Path(path))

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            ConfigError: it could not be written.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def _write(self, content: dict[str, Any], path: Path) -> None:
        files.write(content, path, ownership.confirm)
        if self.then is not None:
            self.then(path)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; ``weights_only`` is always true. See ``checkpoint.file.read``."""
        return files.read(Path(path), "cpu" if map_location is None else map_location)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a file if it exists."""
        Path(path).unlink(missing_ok=True)

    def teardown(self) -> None:
        self.wait()


def _held(value: Any, buffers: dict[str, Tensor], where: str) -> Any:
    """A copy of ``value`` with its tensors in ``buffers``, host memory that every copy uses
    again."""
    if isinstance(value, Tensor):
        buffer = buffers.get(where)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            pinned = torch.cuda.is_available()
            buffer = buffers[where] = torch.empty(value.shape, dtype=value.dtype, pin_memory=pinned)
        return buffer.copy_(value.detach(), non_blocking=True)
    if isinstance(value, dict):
        return type(value)(
            (key, _held(inner, buffers, f"{where}.{key}")) for key, inner in value.items()
        )
    if type(value) in (list, tuple):
        return type(value)(_held(inner, buffers, f"{where}.{i}") for i, inner in enumerate(value))
    return value
