"""A training loop by hand: the one in the documentation learns, and one that forgets the teacher is
refused.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch

from d2v_pretrain.masking import TokenMask
from d2v_pretrain.objective.data2vec import Data2Vec
from d2v_pretrain.objective.teacher import Teacher
from d2v_pretrain.schedules import Linear
from d2v_pretrain.types import Batch
from tests.tiny import batch_of, data2vec1, encoder


def objective_of_text(**parts: Any) -> Data2Vec:
    return data2vec1(encoder("text"), TokenMask(0.5), **parts)


def train(objective: Data2Vec, batches: list[Batch], lr: float = 1e-2) -> list[float]:
    """The loop that the documentation quotes."""
    trained = [p for p in objective.parameters() if p.requires_grad]  # the teacher is not trained
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.98))
    objective.train()
    losses = []
    for step, batch in enumerate(batches, start=1):
        output = objective(batch)
        output.loss.backward()  # the mean over all predicted positions
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(step)  # the teacher follows; to forget it is an error
        losses.append(output.loss.item())
    return losses


def test_the_loop_learns() -> None:
    torch.manual_seed(0)
    objective = objective_of_text(teacher=partial(Teacher, decay=Linear(0.9, 1.0, 30)))
    losses = train(objective, [batch_of("text") for _ in range(60)])
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.parametrize("how", [{"fused": True}, {"foreach": True}, {"foreach": False}])
def test_a_step_without_the_teacher_is_refused(how: dict[str, bool]) -> None:
    objective = objective_of_text().train()
    optimizer = torch.optim.AdamW(objective.student.parameters(), **how)  # type: ignore[arg-type]
    objective(batch_of("text")).loss.backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"missed 1 optimizer step.*after_step\(n\)"):
        objective(batch_of("text"))
    objective.eval()(batch_of("text"))
    objective.after_step(1)
    assert objective.train()(batch_of("text")).loss.isfinite()


def test_accumulation_thrown_away_passes_and_loads_are_no_steps() -> None:
    objective, other = objective_of_text().train(), objective_of_text()
    optimizer = torch.optim.AdamW(objective.student.parameters(), fused=True)
    for step in range(1, 3):
        for first in (0, 3, 6):
            objective(batch_of("text", first=first)).loss.backward()
        optimizer.step()
        objective.after_step(step)
        objective(batch_of("text")).loss.backward()
        optimizer.zero_grad()
        objective.load_state_dict(other.state_dict())
        objective(batch_of("text"))


def test_a_copy_and_another_objective_are_not_concerned() -> None:
    objective, other = objective_of_text().train(), objective_of_text().train()
    copied = copy.deepcopy(objective)
    optimizer = torch.optim.SGD(objective.student.parameters(), lr=0.1)
    objective(batch_of("text")).loss.backward()
    optimizer.step()
    for untouched in (other, copied):
        untouched(batch_of("text"))


def test_the_loss_of_no_position_is_zero() -> None:
    """All samples of the batch could not be decoded."""
    batch = batch_of("text")
    output = objective_of_text()(Batch(batch.inputs, batch.ids, weight=torch.zeros(3)))
    assert output.count == 0 and output.loss.item() == 0
