"""BadData: stops a run whose data have gone bad, on all ranks at the same step."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from d2v_pretrain.errors import ConfigError, DataError
from d2v_pretrain.training.ranks import Totals
from d2v_pretrain.types import Batch

RECENT = 10_000  # items of a window, where a pass over the data is longer
SURE = 8  # unusable items in a row that are not by chance


class BadData(Callback):
    """Counts the items that could not be used, and stops the run if these are too many.

    It raises a ``ConfigError`` at the end of a step or within it, before that step is saved, if

    - the data cannot be read at all any more (``Batch.fault``);
    - in one pass over the data, more than ``max_bad_share`` of all its items could not be used, and
      more than one (unless the share is 0);
    - where a pass has more than 10,000 items, more than twice that share of 10,000 items that were
      read one after another could not be used (twice, because these may be worse by chance);
    - no item of one or several whole steps in a row could be used, and these are at least 8 items;
      at the last step, if no item of the whole run could be used.

    Items that were known to be bad before training do not count. The counts are stored in
    checkpoints, so a resumed run stops where one that was not interrupted would. It needs
    ``max_bad_share``, ``item_count``, ``passes_in_step`` and ``bad_examples()`` of the trainer's
    datamodule.
    """

    def __init__(self) -> None:
        # [items, bad items] of each pass that has begun and has not ended. Pass n has the place n
        # modulo the largest number of passes that a step may take samples from.
        self.passes: list[list[int]] = []
        self.recent = [0, 0]
        self.in_a_row, self.usable = 0, False
        self.step: list[int] = []  # this rank's part of ``passes`` in this step, in one row
        self.fault, self.seen = "", 0

    def state_dict(self) -> dict[str, Any]:
        names = ("passes", "recent", "in_a_row", "usable")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen, self.totals = trainer.global_step, Totals(trainer.strategy)
        self.begin(trainer.datamodule.passes_in_step)  # type: ignore[attr-defined]

    def begin(self, passes: int) -> None:
        """Start to count, or go on with counts that were loaded.

        Args:
            passes: largest number of passes over the data that a step takes samples from.
        """
        if len(self.passes) != passes:
            self.passes = [[0, 0] for _ in range(passes)]
        self.step = [0, 0] * passes

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Count a micro-batch; with the last one of the step, ask the other ranks for theirs."""
        place = 2 * (batch.epoch % len(self.passes))
        self.step[place] += batch.items
        self.step[place + 1] += batch.bad
        self.fault = self.fault or batch.fault
        if self.fault and trainer.world_size == 1:  # several ranks must end the step together
            raise DataError(self.fault)
        if batch.step_samples:
            self.totals.start([*self.step, int(bool(self.fault))])
            self.step = [0] * len(self.step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Judge a step that has ended."""
        if trainer.global_step == self.seen:
            return
        self.seen = trainer.global_step
        *step, faults = self.totals.wait()
        if faults:
            raise DataError(next(filter(None, self.totals.texts(self.fault))))
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        last = trainer.global_step == trainer.max_steps
        if why := self.count(step, data.item_count, data.max_bad_share, last):
            rule = f"ends the run at step {self.seen:,}: {why}{data.bad_examples()}"
            remedy = "mend the files, or raise it, and type the same command"
            raise ConfigError("data.max_bad_share", data.max_bad_share, rule, remedy)

    def count(self, step: list[int], size: int, share: float, last: bool) -> str:
        """Add the counts of a step; why the run must stop, or "".

        Args:
            step: items and bad items of each place of ``passes``, in one row.
            size: number of items in a pass.
            share: the largest share that may be bad.
            last: whether this is the last step of the run.
        """
        items, bad = sum(step[::2]), sum(step[1::2])
        self.in_a_row = self.in_a_row + items if items and bad == items else 0
        self.usable |= bad < items
        if self.in_a_row >= SURE or (last and not self.usable):
            return f"none of the last {self.in_a_row:,} items that were read can be used"
        self.recent = [self.recent[0] + items, self.recent[1] + bad]
        if size > RECENT and self.recent[1] > 2 * share * RECENT:
            return f"{self.recent[1]:,} of the last {self.recent[0]:,} items cannot be used"
        for one, more, worse in zip(self.passes, step[::2], step[1::2]):
            one[:] = [one[0] + more, one[1] + worse]
            if one[1] > max(share * size, share > 0):
                return (
                    f"{one[1]:,} of the {size:,} items of a pass cannot be used (after "
                    f"{one[0]:,} of them)"
                )
            if one[0] >= size:
                one[:] = [0, 0]
        if self.recent[0] >= RECENT:
            self.recent = [0, 0]
        return ""
