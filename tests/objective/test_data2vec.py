"""The objective as a whole: clones, CLS term, samples without weight, masks, and every objective
over every encoder."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from d2v_pretrain.masking import BlockMask, MaskPolicy, RectangleMask, SpanMask, TokenMask
from d2v_pretrain.models.block import Block
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.models.positions import RelativeBias
from d2v_pretrain.models.stems import VisionStem
from d2v_pretrain.objective.data2vec import Data2Vec
from d2v_pretrain.objective.targets import Targets
from d2v_pretrain.objective.teacher import Teacher
from d2v_pretrain.objective.view import MaskedTokensOnly
from d2v_pretrain.rng import fold_in
from d2v_pretrain.schedules import Constant
from d2v_pretrain.types import Batch, Mask, Output
from tests.tiny import DEPTH, HEADS, D, batch_of, data2vec1, data2vec2, encoder


def gradients(model: Data2Vec, output: Output) -> dict[str, Tensor]:
    model.zero_grad()
    output.loss_sum.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


POLICIES: dict[str, MaskPolicy] = {"audio": BlockMask(0.5, 3, 0.05), "text": TokenMask(0.5)}
POLICIES["vision"] = BlockMask(0.7, 2, 0.1, inverse=True)


@pytest.mark.parametrize("modality", ["audio", "text", "vision"])
def test_identical_clones_count_as_often_as_there_are(modality: str) -> None:
    """M clones with one mask and one noise give M times the loss, count and gradient of a single
    one."""
    one = data2vec2(
        encoder(modality), POLICIES[modality], 2 if modality == "vision" else 1, clones=1
    )
    batch = batch_of(modality)
    mask = one.draw(batch)
    noise = torch.randn(*mask.masked.shape, D)
    many = data2vec2(
        encoder(modality), POLICIES[modality], 2 if modality == "vision" else 1, clones=4
    )
    many.load_state_dict(one.state_dict())
    single = one(batch, mask, noise)
    fourfold = many(
        batch, Mask.of(mask.masked.repeat_interleave(4, 0)), noise.repeat_interleave(4, 0)
    )
    assert fourfold.count == 4 * single.count
    torch.testing.assert_close(fourfold.loss_sum, 4 * single.loss_sum)
    torch.testing.assert_close(fourfold.loss, single.loss)
    expected = gradients(one, single)
    for name, gradient in gradients(many, fourfold).items():
        torch.testing.assert_close(gradient, 4 * expected[name], atol=1e-4, rtol=1e-4)


def test_the_loss_is_the_mean_over_masked_positions_of_prediction_and_target() -> None:
    model, batch = data2vec1(encoder("text"), SpanMask(0.4, 2, False, False)), batch_of("text")
    mask = model.draw(batch)
    output = model(batch, mask)
    assert output.count == int(mask.masked.sum()) == len(output.pred)
    errors = (output.pred - output.target).square().sum(1) / D**0.5
    torch.testing.assert_close(output.loss_sum, errors.sum())
    torch.testing.assert_close(output.loss, errors.mean())
    assert output.position.tolist() == [
        t for row in mask.masked for t, hidden in enumerate(row.tolist()) if hidden
    ]
    teacher = model.teacher.encoder.encode(batch, 2)
    torch.testing.assert_close(output.target, Targets(2)(teacher.layers, None)[mask.masked])
    assert (
        not output.pred.requires_grad
        and not output.target.requires_grad
        and output.loss.requires_grad
    )


def test_targets_of_clones_are_those_of_their_sample() -> None:
    model, batch = data2vec2(encoder("audio"), POLICIES["audio"]), batch_of("audio")
    mask = model.draw(batch)
    whole = model.target(batch, model.student.stem(batch), mask)
    rows = mask.index // mask.masked.shape[1]
    expected = torch.stack(
        [
            whole[int(r) // 3, int(i) % mask.masked.shape[1]]
            for r, i in zip(rows, mask.index, strict=True)
        ]
    )
    assert torch.equal(model(batch, mask).target, expected)


def test_cls_term_by_its_formula() -> None:
    """Weight times the count of the micro-batch times the sum over rows, so 0.01 B M of a row's
    mean after division."""
    model, batch = (
        data2vec2(encoder("vision"), POLICIES["vision"], 2, cls_weight=0.01),
        batch_of("vision"),
    )
    mask = model.draw(batch)
    output = model(batch, mask)
    local = model.student.stem(batch)
    cls = model.student(local.repeat(3), mask).x[:, 0]
    mean = model.target(batch, local, mask).mean(1).repeat_interleave(3, 0)
    per_row = (cls - mean).square().sum(1) / D**0.5
    torch.testing.assert_close(
        output.terms["cls"] / output.count, 0.01 * 9 * per_row.mean().detach()
    )
    torch.testing.assert_close(
        output.terms["cls"] + output.terms["regression"], output.loss_sum.detach()
    )
    with pytest.raises(AssertionError, match="extra token"):
        data2vec2(encoder("text"), TokenMask(0.5), cls_weight=0.01)


@pytest.mark.parametrize(
    ("modality", "cls_weight"), [("audio", 0), ("text", 0), ("vision", 0), ("vision", 0.01)]
)
def test_a_sample_without_weight_leaves_the_others_alone(modality: str, cls_weight: float) -> None:
    dims = 2 if modality == "vision" else 1
    model = data2vec2(encoder(modality), POLICIES[modality], dims, cls_weight=cls_weight)
    batch = batch_of(modality)
    good = Batch(batch.inputs[[0, 2]], batch.ids[[0, 2]])
    noise = torch.randn(9, model.draw(batch).masked.shape[1], D)
    some = model(replace(batch, weight=torch.tensor([1.0, 0.0, 1.0])), noise=noise)
    alone = model(good, noise=noise.view(3, 3, *noise.shape[1:])[[0, 2]].flatten(0, 1))
    assert some.count == alone.count
    torch.testing.assert_close(some.loss_sum, alone.loss_sum)
    assert torch.equal(some.position, alone.position)
    expected = gradients(model, alone)
    for name, gradient in gradients(model, some).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_padding_changes_neither_masks_nor_targets(modality: str) -> None:
    """With mask_padding, a short sample beside a long one has the masks and targets that it has
    alone.

    Predictions within reach of the decoder's convolutions do see what stands at padding, as
    published."""
    student = encoder(modality, **({"zero_padding": True} if modality == "audio" else {}))
    model = data2vec2(student, POLICIES[modality], clones=2)
    long, short = batch_of(modality, 1), batch_of(modality, 1, first=9)
    size = 155 if modality == "audio" else 9
    whole, fill = long.inputs.shape[1], 0 if modality == "audio" else 1
    short = Batch(short.inputs[:, :size], short.ids)
    padded = torch.nn.functional.pad(short.inputs, (0, whole - size), value=fill)
    both = Batch(
        torch.cat([long.inputs, padded]),
        torch.cat([long.ids, short.ids]),
        torch.tensor([whole, size]),
    )
    together, apart = model(both), [model(b) for b in (long, short)]
    assert together.position.tolist() == [*apart[0].position.tolist(), *apart[1].position.tolist()]
    torch.testing.assert_close(
        together.target, torch.cat([o.target for o in apart]), atol=1e-5, rtol=1e-4
    )


def test_masks_are_drawn_on_the_host_and_equal_for_equal_ids() -> None:
    model = data2vec2(encoder("audio"), POLICIES["audio"], seed=5)
    batch = batch_of("audio", 4)
    mask = model.draw(batch)
    part = model.draw(Batch(batch.inputs[[3, 1]], batch.ids[[3, 1]]))
    assert mask.masked.device.type == "cpu"
    assert torch.equal(part.masked, mask.masked.view(4, 3, -1)[[3, 1]].flatten(0, 1))
    policy = POLICIES["audio"](fold_in(5, 0), batch.ids, 3, (24,))
    assert torch.equal(mask.masked, policy.masked)
    later = model.draw(replace(batch, epoch=1))
    assert not torch.equal(later.masked, mask.masked)


ENCODERS: dict[str, Any] = {
    "audio": lambda: encoder("audio", 0.1),
    "text": lambda: encoder("text", 0.1),
    "vision": lambda: encoder("vision", 0.1),
    "beit": lambda: Encoder(
        VisionStem(D, 4, masked=True),
        partial(Block, D, HEADS, norm_first=True, layer_scale=0.1, key_bias=False),
        D,
        DEPTH,
        bias=RelativeBias(HEADS, (4, 4)),
        extra_tokens=1,
        input_norm=False,
        final_norm=True,
        drop_path=0.1,
        init="beit",
    ),
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", ENCODERS)
def test_every_objective_trains_over_every_encoder(name: str, version: int) -> None:
    """Also data2vec 2's masks and decoder over data2vec 1's vision encoder, the one that Hugging
    Face can load."""
    torch.manual_seed(0)
    modality = "vision" if name == "beit" else name
    dims = 2 if modality == "vision" else 1
    policy = RectangleMask(9, 2) if modality == "vision" and version == 1 else POLICIES[modality]
    student = ENCODERS[name]()
    parts: dict[str, Any] = {
        "teacher": partial(Teacher, decay=Constant(1.0))
    }  # targets that hold still
    parts |= {"cls_weight": 0.01} if dims == 2 and version == 2 else {}
    model = (
        data2vec1(student, policy, **parts)
        if version == 1
        else data2vec2(student, policy, dims, **parts)
    ).train()
    trained = [*model.student.parameters(), *model.predictor.parameters()]
    optimizer, batch, losses = torch.optim.AdamW(trained, lr=1e-2), batch_of(modality), []
    for update in range(1, 26):
        output = model(batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        model.after_step(update)
        losses.append(float(output.loss.detach()))
    unused = {n for n, p in model.student.named_parameters() if p.grad is None}
    assert unused <= (
        {"stem.mask_vector"} if version == 2 else {"final_norm.weight", "final_norm.bias"}
    )
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", ENCODERS)
def test_a_step_never_asks_the_device_for_a_value(name: str, version: int) -> None:
    """On the meta device there are no values: whatever would make the host wait for a GPU fails
    here."""
    modality = "vision" if name == "beit" else name
    dims = 2 if modality == "vision" else 1
    with torch.device("meta"):
        student = ENCODERS[name]()
        student.layer_drop = 0.5
        policy = (
            RectangleMask(9, 2) if modality == "vision" and version == 1 else POLICIES[modality]
        )
        model = data2vec1(student, policy) if version == 1 else data2vec2(student, policy, dims)
    batch = batch_of(modality)
    if modality != "vision":
        size = batch.inputs.shape[1]
        batch = replace(
            batch,
            lengths=torch.tensor([size, size - 3, size]),
            weight=torch.tensor([1.0, 1.0, 0.0]),
        )
    output = model.train()(batch.to("meta"))
    output.loss.backward()
    model.after_step(1)
    assert output.loss.is_meta and 0 < output.count == len(output.pred)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", ENCODERS)
def test_mixed_precision_gives_nearly_the_same_loss_and_float32_targets(
    name: str, version: int
) -> None:
    modality = "vision" if name == "beit" else name
    dims = 2 if modality == "vision" else 1
    policy = RectangleMask(9, 2) if modality == "vision" and version == 1 else POLICIES[modality]
    student = ENCODERS[name]()
    model = (
        data2vec1(student, policy) if version == 1 else data2vec2(student, policy, dims)
    ).eval()
    batch = batch_of(modality)
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch)
    output.loss.backward()
    assert output.loss.dtype == output.target.dtype == output.pred.dtype == torch.float32
    assert float(output.loss.detach()) == pytest.approx(float(exact.loss.detach()), rel=0.05)
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())


def test_the_teacher_of_the_public_text_run_reads_masked_tokens_only() -> None:
    model = data2vec1(
        encoder("text"), SpanMask(0.4, 2, False, False), teacher_view=MaskedTokensOnly()
    )
    batch = batch_of("text")
    mask = model.draw(batch)
    shown = Batch(
        batch.inputs.where(mask.masked, torch.ones_like(batch.inputs)),
        batch.ids,
        torch.full((3,), 14),
    )
    layers = model.teacher.encoder.encode(shown, 2)
    expected = Targets(2)(layers.layers, layers.valid)[mask.masked]
    torch.testing.assert_close(model(batch, mask).target, expected)


def test_state_holds_student_predictor_and_teacher_and_no_buffers() -> None:
    model = data2vec1(encoder("audio"), SpanMask(0.6, 3))
    prefixes = {name.split(".")[0] for name in model.state_dict()}
    assert prefixes == {"student", "predictor", "teacher"}
    assert set(model.state_dict()) == {name for name, _ in nn.Module.named_parameters(model)}
