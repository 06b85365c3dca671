"""Private names of Lightning and torch: they stand in one file, exist, and mean what we take them
for.
"""

from __future__ import annotations

import ast
import inspect
from datetime import timedelta
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from torch import nn

from d2v_pretrain.training import internals

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable"),
    pytest.mark.filterwarnings("ignore:.*tensorboardX"),
]


def private_names(path: Path) -> list[str]:
    """``x._name`` for an x other than self, cls, super() and os, and imports of ``_name``."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr[0] == "_" and node.attr[1] != "_":
            owner = ast.unparse(node.value)
            found += [] if owner in ("self", "cls", "super()", "os") else [f"{owner}.{node.attr}"]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found += [n for n in names if n.startswith(("torch", "lightning")) and "._" in n]
    return found


def test_private_names_stand_in_one_file() -> None:
    rooms = ("training", "checkpoint", "evaluation", "objective", "models", "masking")
    files = [path for room in rooms for path in (ROOT / "d2v_pretrain" / room).rglob("*.py")]
    found = {path.name: names for path in files if (names := private_names(path))}
    assert found.keys() == {"internals.py"}, found


def test_sigterm_handling_of_lightning_is_where_we_disable_it() -> None:
    assert callable(_SignalConnector.register_signal_handlers)
    assert callable(_TrainingEpochLoop._broadcast_sigterm_tensor)
    assert "_broadcast_sigterm_tensor()" in inspect.getsource(_TrainingEpochLoop)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    internals.disable_sigterm_handling(trainer)
    assert trainer._signal_connector.register_signal_handlers() is None
    assert trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor() is None


def test_strategies_keep_their_timeout() -> None:
    limit = timedelta(minutes=3)
    assert internals.collective_timeout(DDPStrategy(timeout=limit)) == limit
    assert internals.collective_timeout(ModelParallelStrategy(timeout=limit)) == limit
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    assert internals.collective_timeout(trainer.strategy) is None


def test_the_size_of_the_data_parallel_mesh_is_read_from_where_we_write_it() -> None:
    source = inspect.getsource(ModelParallelStrategy.setup_environment)
    assert 'if self._data_parallel_size == "auto"' in source
    assert "_setup_device_mesh(\n            self._data_parallel_size" in source


class Tiny(L.LightningModule):
    """One weight, and the checkpoint that Lightning wrote for it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.steps = nn.Linear(1, 1), 0

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.steps += 1
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Endless:
    def __iter__(self):  # type: ignore[no-untyped-def]
        while True:
            yield torch.ones(1, 1)


def fit(model: Tiny, steps: int, accumulate: int, path: Path | None = None) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, Endless(), ckpt_path=path)
    return trainer


def test_lightning_counts_steps_by_the_batches_done(tmp_path: Path) -> None:
    """Two steps of two micro-batches, then one of three: five or two more would be wrong."""
    fit(Tiny(), 2, accumulate=2).save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=False)
    internals.set_batches_done(content, 2 * 3)
    torch.save(content, tmp_path / "b.ckpt")
    model = Tiny()
    trainer = fit(model, 3, 3, tmp_path / "b.ckpt")
    assert (trainer.global_step, model.steps) == (3, 3)


@pytest.mark.parametrize("bad", [0.0, 1.0])
def test_a_fused_optimizer_skips_a_bad_step(bad: float) -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=True)
    for gradient, flag in ((1.0, 0.0), (torch.nan if bad else 1.0, bad)):
        parameter.grad = torch.full((3,), gradient)
        internals.skip_step_if(optimizer, torch.tensor(flag))
        before = parameter.detach().clone()
        optimizer.step()
    assert torch.equal(parameter, before) is bool(bad)
    assert parameter.isfinite().all()


def test_tensors_are_multiplied_in_place_and_mapped_by_class() -> None:
    tensors = [torch.ones(2), torch.full((1, 3), 2.0)]
    internals.multiply_in_place(tensors, torch.tensor(3.0))
    assert tensors[0].tolist() == [3, 3] and tensors[1].tolist() == [[6, 6, 6]]
    tree = {"a": [nn.Parameter(torch.ones(1))], "b": {"c": torch.ones(1), "d": 5}}
    mapped = internals.map_tensors(nn.Parameter, lambda p: "share", tree)
    assert mapped == {"a": ["share"], "b": {"c": torch.ones(1), "d": 5}}


def test_the_store_of_the_process_group_is_there(tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        internals.default_store().set("key", "value")
        assert internals.default_store().get("key") == b"value"
    finally:
        torch.distributed.destroy_process_group()
