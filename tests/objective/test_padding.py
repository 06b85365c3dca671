"""Padding changes neither loss nor gradients: a padded batch against its rows alone.

The architectures and objectives are those of conf/, in small sizes and without dropout, whose
random numbers depend on the shape of a batch. Left out is the target norm ``batch``, which no
recipe has: its statistics are those of the batch by definition, so that rows depend on each other
even without padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor

from d2v_pretrain.config.compose import load
from d2v_pretrain.objective.base import Objective
from d2v_pretrain.objective.supervised import Supervised
from d2v_pretrain.objective.targets import Targets
from d2v_pretrain.types import Batch, Mask

WIDTH = 32
SMALL = ["encoder.width=32", "encoder.depth=3", "encoder.heads=4", "objective.targets.top_k=2"]
STILL = ["architecture.block.dropout=0", "architecture.block.attention_dropout=0"]
AUDIO = ["encoder.conv=[[16,10,5],[16,3,2],[16,2,2]]", "architecture.input_dropout=0"]
AUDIO += ["architecture.layer_drop=0", "transform.crop_seconds=0.2"]
TEXT = ["architecture.stem.dropout=0", "transform.vocab_size=400", "transform.block=40"]
VISION = ["architecture.drop_path=0", "transform.size=32", "architecture.stem.patch=8"]
SPANS = ["masking.length=3"]
DECODER = ["objective.predictor.dim=16", "objective.predictor.input_dropout=0"]
PUBLISHED = {
    "audio_data2vec1_base": [*AUDIO, *SPANS],
    "audio_data2vec2_base": [*AUDIO, *SPANS, *DECODER],
    "text_data2vec1_base": [*TEXT, *SPANS],
    "text_data2vec1_base_paper": TEXT,
    "text_data2vec2_base": [*TEXT, *DECODER],
    "vision_data2vec1_base": [*VISION, "masking.count=9", "masking.min_patches=2"],
    "vision_data2vec2_base": [*VISION, *DECODER, "masking.length=2"],
}
# The same recipes with another encoder: the first convolution's norm takes mean and variance over
# time.
WAV2VEC2 = ["architecture=audio_wav2vec2", "architecture.positions.total_kernel=6"]
PUBLISHED |= {
    f"{name} with audio_wav2vec2": [*WAV2VEC2, *PUBLISHED[name]]
    for name in ("audio_data2vec1_base", "audio_data2vec2_base")
}
TINY = {
    "audio_data2vec1_tiny": AUDIO,
    "audio_data2vec2_tiny": AUDIO,
    "text_data2vec1_tiny": TEXT,
    "text_data2vec2_tiny": TEXT,
}


@pytest.fixture(autouse=True)
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Targets and losses are computed in float32 whatever the weights are in; here in float64, so
    that nothing but the rounding of float64 is left of a difference."""
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(torch, "float32", torch.float64)
    yield
    monkeypatch.undo()
    torch.set_default_dtype(torch.float32)


def built(recipe: str) -> Any:
    """The objective of a recipe in a small size, in float64."""
    words = PUBLISHED.get(recipe) or TINY[recipe]
    root = ["data.root=."] if recipe in PUBLISHED else []
    cfg = load([f"recipe={recipe.split()[0]}", *root, *SMALL, *STILL, *words])
    torch.manual_seed(0)
    objective = instantiate(cfg.objective, _convert_="all")
    for name, parameter in objective.named_parameters():
        if parameter.ndim == 1 or "bias" in name:  # norms and biases are not at their start
            parameter.data += 0.3 * torch.randn_like(parameter)
    return objective.train()


def batch_for(recipe: str) -> Batch:
    generator, ids = torch.Generator().manual_seed(1), torch.tensor([7, 3, 11])
    if recipe.startswith("vision"):
        return Batch(torch.randn(3, 3, 32, 32, generator=generator), ids)
    if recipe.startswith("audio"):
        lengths = torch.tensor([800, 3000, 1490])
        inputs = torch.randn(3, 3000, generator=generator)
    else:
        lengths = torch.tensor([23, 40, 9])
        inputs = torch.randint(4, 390, (3, 40), generator=generator)
    inputs[torch.arange(inputs.shape[1]) >= lengths[:, None]] = recipe.startswith("text")  # 0 or 1
    return Batch(inputs, ids, lengths)


def row(batch: Batch, i: int) -> Batch:
    """One sample of a batch without its padding."""
    length = batch.inputs.shape[-1] if batch.lengths is None else int(batch.lengths[i])
    return Batch(batch.inputs[i : i + 1, ..., :length], batch.ids[i : i + 1])


def row_mask(mask: Mask, rows: slice, tokens: int) -> Mask:
    """The same choice of tokens in some rows, cut to their real tokens."""
    random = None if mask.random is None else mask.random[rows, :tokens]
    return Mask.of(mask.masked[rows, :tokens], random=random)


def gradients(objective: Objective) -> dict[str, Tensor]:
    named = objective.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def compared(objective: Any, batch: Batch) -> tuple[float, float]:
    """The largest differences between a batch and the sum of its rows: of the loss, and of a
    gradient relative to the largest gradient."""
    stem, mask = objective.student.stem, objective.draw(batch)
    noise = torch.randn(*mask.masked.shape, WIDTH) / 100
    whole = objective(batch, mask, noise)
    whole.loss_sum.backward()
    together, rows, cls_weight = gradients(objective), len(batch), objective.cls_weight
    objective.zero_grad()
    loss, clones = 0.0, objective.clones
    # The published CLS term is multiplied by the number of predicted positions of the micro-batch,
    # which is ``rows`` times that of each row here.
    objective.cls_weight = cls_weight * rows
    for i in range(rows):
        alone, span = row(batch, i), slice(i * clones, (i + 1) * clones)
        tokens = stem.grid(alone.inputs.shape)
        size = int(torch.tensor(tokens).prod())
        own = objective(alone, row_mask(mask, span, size), noise[span, :size])
        own.loss_sum.backward()
        loss += float(own.loss_sum.detach())
    summed = gradients(objective)
    assert together.keys() == summed.keys() and whole.count == mask.count >= 10
    largest = max(float(g.abs().max()) for g in summed.values())
    worst = max(float((together[n] - g).abs().max()) for n, g in summed.items())
    return abs(float(whole.loss_sum.detach()) / loss - 1), worst / largest


@pytest.mark.parametrize("recipe", [*PUBLISHED, *TINY])
def test_a_padded_batch_is_the_sum_of_its_rows(recipe: str) -> None:
    loss, gradient = compared(built(recipe), batch_for(recipe))
    assert loss < 1e-10 and gradient < 1e-10


@pytest.mark.parametrize("recipe", ["audio_data2vec2_base", "text_data2vec2_base"])
def test_the_published_decoder_reads_padding(recipe: str) -> None:
    """The comparison above finds a leak where there is one."""
    objective = built(recipe)
    objective.predictor.mask_padding = False
    assert compared(objective, batch_for(recipe))[1] > 1e-3


@pytest.mark.parametrize("recipe", ["audio_data2vec1_base", "audio_data2vec2_base"])
def test_the_published_positions_read_padding(recipe: str) -> None:
    objective = built(recipe)
    for encoder in objective.encoders:
        encoder.positions.mask_padding = False
    assert compared(objective, batch_for(recipe))[1] > 1e-3


@pytest.mark.parametrize("recipe", ["audio_data2vec2_base", "text_data2vec2_base"])
def test_more_padding_changes_nothing(recipe: str) -> None:
    """Not even its content: 500 further samples, or 20 further tokens, of any value."""
    objective, batch = built(recipe), batch_for(recipe)
    text = recipe.startswith("text")
    more = batch.inputs.new_full((3, 20 if text else 500), 1 if text else 50)
    wide = Batch(torch.cat([batch.inputs, more], 1), batch.ids, batch.lengths)
    mask = objective.draw(batch)
    found = []
    for padded in (batch, wide):
        drawn = objective.draw(padded)
        assert torch.equal(drawn.masked[:, : mask.masked.shape[1]], mask.masked)
        noise = torch.zeros(*drawn.masked.shape, WIDTH)
        objective.zero_grad()
        output = objective(padded, drawn, noise)
        output.loss_sum.backward()
        norm = sum(g.square().sum() for g in gradients(objective).values()) ** 0.5
        found.append((float(output.loss_sum.detach()), float(norm)))
    assert found[0] == pytest.approx(found[1], rel=1e-10)


def test_a_row_of_a_single_token_keeps_it() -> None:
    """Without a visible token its attention would have nothing to attend to, which gives NaN."""
    objective, batch = built("text_data2vec2_base"), batch_for("text_data2vec2_base")
    inputs = batch.inputs.clone()
    inputs[2, 1:] = 1
    output = objective(Batch(inputs, batch.ids, torch.tensor([23, 40, 1])))
    output.loss.backward()
    assert all(g.isfinite().all() for g in gradients(objective).values())


@pytest.mark.parametrize("recipe", ["audio_data2vec1_base", "audio_data2vec2_base"])
def test_the_gradient_of_a_padded_batch_is_as_large_as_of_a_full_one(recipe: str) -> None:
    """LayerNorm of constant zeros divides by 0.003 in every layer of the stem; a gradient that
    passes through padding grows by that factor in each."""
    objective, full = built(recipe), batch_for(recipe).inputs
    norms = []
    for shortest in (3000, 900):
        lengths = torch.tensor([shortest, 3000, 3000])
        inputs = torch.randn_like(full)
        inputs[0, shortest:] = 0
        objective.zero_grad()
        output = objective(Batch(inputs, torch.arange(3), lengths))
        output.loss.backward()
        norms.append(float(sum(g.square().sum() for g in gradients(objective).values()) ** 0.5))
    assert 0.5 < norms[1] / norms[0] < 2


@pytest.mark.parametrize("recipe", ["audio_data2vec1_base", "text_data2vec1_base", *TINY])
def test_supervised_training_does_not_see_padding(recipe: str) -> None:
    torch.manual_seed(0)
    objective = Supervised(built(recipe).student, 4).train()
    batch, labels = batch_for(recipe), torch.tensor([2, 0, 3])
    objective(Batch(batch.inputs, batch.ids, batch.lengths, labels)).loss_sum.backward()
    together = gradients(objective)
    objective.zero_grad()
    for i in range(3):
        alone = row(batch, i)
        objective(Batch(alone.inputs, alone.ids, None, labels[i : i + 1])).loss_sum.backward()
    summed = gradients(objective)
    largest = max(float(g.abs().max()) for g in summed.values())
    worst = max(float((together[n] - g).abs().max()) for n, g in summed.items())
    assert worst < 1e-10 * largest


@pytest.mark.parametrize("norm", ["instance", "group", "layer"])
def test_targets_of_a_row_do_not_depend_on_its_padding(norm: str) -> None:
    torch.manual_seed(0)
    layers, lengths = [torch.randn(3, 9, 5) * 3 + 1 for _ in range(2)], torch.tensor([4, 9, 6])
    targets = Targets(2, layer_norms=[norm])
    found = targets(layers, torch.arange(9) < lengths[:, None])
    for i, length in enumerate(lengths.tolist()):
        alone = targets([layer[i : i + 1, :length] for layer in layers], None)
        torch.testing.assert_close(found[i : i + 1, :length], alone, rtol=1e-10, atol=1e-10)
