"""The teacher: its average in closed form, what is copied, precision, mode and graph."""

from __future__ import annotations

import pytest
import torch

from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.models.positions import Alibi
from d2v_pretrain.objective.teacher import Teacher
from d2v_pretrain.schedules import Constant, Linear
from d2v_pretrain.types import Batch
from tests.tiny import encoder


def student() -> Encoder:
    return encoder("audio", dropout=0.5, layer_drop=0.5)


def perturb(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def test_closed_form_after_n_steps() -> None:
    model, decay = student(), Linear(0.5, 0.9, 10)
    teacher = Teacher(model, decay)
    history = [{name: p.detach().double().clone() for name, p in model.named_parameters()}]
    for update in range(1, 6):
        perturb(model, update)
        teacher.update(model, update)
        history.append({name: p.detach().double().clone() for name, p in model.named_parameters()})
    for name, parameter in teacher.encoder.named_parameters():
        expected, remaining = torch.zeros_like(history[0][name]), 1.0
        for update in range(
            5, 0, -1
        ):  # weight of the student of update k: (1 - d_k) times all later d
            expected += remaining * (1 - decay(update)) * history[update][name]
            remaining *= decay(update)
        expected += remaining * history[0][name]
        torch.testing.assert_close(parameter.double(), expected, atol=1e-5, rtol=1e-5)


def test_a_decay_of_one_freezes() -> None:
    model = student()
    teacher = Teacher(model, Constant(1.0))
    before = {name: t.clone() for name, t in teacher.state_dict().items()}
    perturb(model, 1)
    teacher.update(model, 1)
    assert all(torch.equal(t, before[name]) for name, t in teacher.state_dict().items())


def test_copied_parts_equal_the_student_and_the_others_do_not() -> None:
    model = student()
    teacher = Teacher(model, Constant(0.9), copied=("stem", "positions"))
    perturb(model, 1)
    teacher.update(model, 1)
    ours = dict(model.named_parameters())
    for name, parameter in teacher.encoder.named_parameters():
        assert torch.equal(parameter, ours[name]) == name.startswith(("stem.", "positions.")), name


def test_buffers_are_not_touched() -> None:
    model = student()
    teacher = Teacher(model, Constant(0.5))
    model.register_buffer("index", torch.arange(3))
    teacher.encoder.register_buffer("index", torch.arange(3) + 10)
    assert isinstance(model.bias, Alibi) and isinstance(teacher.encoder.bias, Alibi)
    slopes = teacher.encoder.bias.slopes.clone()
    model.bias.slopes += 1
    teacher.update(model, 1)
    assert torch.equal(teacher.encoder.bias.slopes, slopes)
    assert teacher.encoder.get_buffer("index").tolist() == [10, 11, 12]


def test_it_starts_as_the_student_and_shares_nothing_with_it() -> None:
    model = student()
    teacher = Teacher(model, Constant(0.9))
    for name, parameter in teacher.encoder.named_parameters():
        original = model.get_parameter(name)
        assert torch.equal(parameter, original) and parameter.data_ptr() != original.data_ptr()


def test_a_bfloat16_student_has_a_float32_teacher_that_moves() -> None:
    """At a decay of .9999 a bfloat16 accumulator would stand still."""
    model = student().to(torch.bfloat16)
    teacher = Teacher(model, Constant(0.9999))
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    before = teacher.encoder.input_norm.bias.clone()  # type: ignore[operator]
    with torch.no_grad():
        model.input_norm.bias.fill_(1.0)  # type: ignore[union-attr]
    for update in range(1, 101):
        teacher.update(model, update)
    torch.testing.assert_close(
        teacher.encoder.input_norm.bias - before,
        torch.full((16,), 1 - 0.9999**100),
        rtol=1e-4,
        atol=0,
    )


def test_always_in_eval_mode_and_without_gradients() -> None:
    model = student()
    teacher = Teacher(model, Constant(0.9)).train()
    holder = torch.nn.ModuleDict({"teacher": teacher}).train()
    assert holder.training and not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    batch = Batch(torch.randn(2, 100), torch.arange(2))
    local = model.stem(batch)
    first, second = (teacher(batch, local, 2, "ffn") for _ in range(2))
    assert torch.equal(first.x, second.x)  # neither dropout nor layer drop
    assert not first.x.requires_grad and len(first.layers) == 2


@pytest.mark.parametrize("shared", [True, False])
def test_which_stem_it_reads(shared: bool) -> None:
    model = student()
    teacher = Teacher(model, Constant(0.9), reads_student_stem=shared)
    batch = Batch(torch.randn(2, 100), torch.arange(2))
    out = teacher(batch, model.stem(batch), 1, "block").x
    with torch.no_grad():
        model.stem.projection.weight.add_(1.0)  # type: ignore[operator, union-attr]
    assert torch.equal(teacher(batch, model.stem(batch), 1, "block").x, out) != shared
