"""bad_steps.py: a step that is not finite changes nothing and is written down; many in a row, back
once, then stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from d2v_pretrain.config.compose import load
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.training.module import TrainingModule
from d2v_pretrain.training.run import pretrain
from d2v_pretrain.types import Batch
from tests.resume.processes import COMMON, RUNS

ARGV = [
    a for a in RUNS["vision"] + COMMON if not a.startswith(("steps", "log_every", "checkpoint"))
]
ARGV += ["steps=12", "log_every=4", "checkpoint.every_steps=3", "checkpoint.keep_last=9"]
ARGV += ["callbacks.bad_steps.patience=3"]


@pytest.fixture
def poisoned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[set[int]], dict[int, list[Tensor]]]:
    """Train with a loss that is nan in the steps given; the student's weights before each step."""
    monkeypatch.chdir(tmp_path)
    step = TrainingModule.training_step

    def train(bad: set[int]) -> dict[int, list[Tensor]]:
        before: dict[int, list[Tensor]] = {}

        def training_step(module: TrainingModule, batch: Batch, batch_idx: int) -> Tensor:
            loss = step(module, batch, batch_idx)
            before.setdefault(
                module.updates, [p.detach().clone() for p in module.objective.student.parameters()]
            )
            return loss * float("nan") if module.updates in bad and batch_idx % 2 else loss

        monkeypatch.setattr(TrainingModule, "training_step", training_step)
        pretrain(load(ARGV))
        return before

    return train


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b))


def written(folder: Path) -> dict[int, list[int]]:
    lines = [
        json.loads(line) for line in (folder / "runs/run/bad_steps.jsonl").read_text().splitlines()
    ]
    return {line["step"]: line["ids"] for line in lines}


def test_a_bad_step_changes_nothing_and_is_written_down(poisoned: Callable, tmp_path: Path) -> None:
    weights = poisoned({4})
    assert equal(weights[4], weights[5]) and not equal(weights[5], weights[6])
    assert all(w.isfinite().all() for step in weights.values() for w in step)
    assert list(written(tmp_path)) == [5] and len(written(tmp_path)[5]) == 4


def test_many_in_a_row_go_back_once(poisoned: Callable, tmp_path: Path) -> None:
    """Steps 4 to 7 are bad; at the logged step 8 the run goes back to step 3 and goes on with the
    data of step 9."""
    weights = poisoned({4, 5, 6, 7})
    assert not equal(weights[3], weights[4]) and equal(weights[4], weights[7])
    assert equal(weights[8], weights[3]) and not equal(weights[9], weights[8])
    assert list(written(tmp_path)) == [5, 6, 7, 8]


def test_the_second_time_the_run_stops(poisoned: Callable) -> None:
    with pytest.raises(
        ConfigError, match=r"3 steps in a row, .* step 12, although the run had gone back"
    ):
        poisoned({4, 5, 6, 7, 8, 9, 10, 11})


def test_a_skipped_step_counts_neither_for_adam_nor_for_the_teacher(
    poisoned: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fairseq's Adam written out, whose count does not go up at a skipped step; an eps as large as
    the gradients shows the count that it is corrected with."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    modules: list[TrainingModule] = []
    prepare = TrainingModule.on_before_optimizer_step

    def teacher(module: TrainingModule) -> Tensor:
        found = module.objective.teacher.encoder.parameters()  # type: ignore[union-attr]
        return torch.cat([p.detach().flatten() for p in found])

    def on_before_optimizer_step(module: TrainingModule, optimizer: torch.optim.Optimizer) -> None:
        prepare(module, optimizer)
        weight = module.objective.student.blocks[0].fc1.weight
        seen.append((weight.detach().clone(), weight.grad.clone(), teacher(module)))
        modules.append(module)

    monkeypatch.setattr(TrainingModule, "on_before_optimizer_step", on_before_optimizer_step)
    eps = ["optimizer=adam_fairseq", "optimizer.eps=0.02", "clip=null", "steps=6"]
    monkeypatch.setattr(f"{__name__}.ARGV", [a for a in ARGV if "steps=12" not in a] + eps)
    poisoned({0, 3})
    module = modules[0]
    b1, b2 = module.optimizers().param_groups[0]["betas"]  # type: ignore[union-attr]
    m = v = torch.zeros_like(seen[0][0], dtype=torch.float64)
    count = 0
    for step, (weight, gradient, teacher_before) in enumerate(seen[:-1]):
        expected, gradient = weight.double(), gradient.double()
        if bool(gradient.isfinite().all()):
            count += 1
            m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient.square()
            lr = module.lr_schedule(step)
            expected = expected * (1 - lr * module.weight_decay)
            size = lr * (1 - b2**count) ** 0.5 / (1 - b1**count)
            expected = expected - size * m / (v.sqrt() + 0.02)
        torch.testing.assert_close(seen[step + 1][0].double(), expected, rtol=1e-5, atol=2e-7)
        moved = not torch.equal(seen[step + 1][2], teacher_before)
        assert moved == (step not in (0, 3) and count > 0)
    assert count == 3, "of the first five steps two were skipped"
