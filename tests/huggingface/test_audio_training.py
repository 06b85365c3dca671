"""The audio classes in training: SpecAugment, layer drop, checkpointed activations, frozen
parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from d2v_pretrain import huggingface as family
from d2v_pretrain.huggingface.spec_augment import span_mask
from tests.huggingface.audio_cases import (
    NO_DROPS,
    SIZES,
    agree,
    ours,
    randomised,
    theirs,
    transformers,
    waves,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


def model(name: str, **settings: Any) -> Any:
    config = family.Data2VecAudioConfig(**SIZES | settings)
    return randomised(getattr(family, f"Data2VecAudio{name}")(config))


def their_mask(size: int, prob: float, length: int, least: int, lengths: Tensor) -> Tensor:
    from transformers.models.data2vec.modeling_data2vec_audio import _compute_mask_indices

    attended = torch.arange(size) < lengths[:, None]
    masked = torch.from_numpy(
        _compute_mask_indices((len(lengths), size), prob, length, attended, least)
    )
    return masked & attended  # a row without a span gets its last place masked, which is padding


@pytest.mark.parametrize(
    ("size", "prob", "length", "least"),
    [(60, 0.05, 10, 2), (60, 0.5, 7, 0), (30, 0.9, 10, 1), (40, 0.03, 3, 0)],
)
def test_spans_are_distributed_as_theirs(size: int, prob: float, length: int, least: int) -> None:
    lengths = torch.tensor([size, size - 7, length + 1])
    torch.manual_seed(0)
    np.random.seed(0)
    calls = 1500
    mine = torch.stack(
        [span_mask(3, size, prob, length, least, lengths, lengths.device) for _ in range(calls)]
    )
    theirs = torch.stack([their_mask(size, prob, length, least, lengths) for _ in range(calls)])
    mine, theirs = mine.double(), theirs.double()
    tolerance = 4.5 * (2 / calls) ** 0.5  # of a difference of means, in standard deviations
    masked = [counts.sum(2) for counts in (mine, theirs)]
    deviation = masked[1].std(0) + 1e-9
    assert ((masked[0].mean(0) - masked[1].mean(0)).abs() / deviation < tolerance).all()
    assert ((masked[0].std(0) - masked[1].std(0)).abs() < tolerance * deviation + 1e-6).all()
    assert ((mine.mean(0) - theirs.mean(0)).abs() < tolerance * 0.5).all()  # place by place


@pytest.mark.parametrize("drop", NO_DROPS)
def test_each_dropout_is_where_theirs_is(drop: str, tmp_path: Path) -> None:
    """A rate of 1 drops everything, which is not random."""
    their = theirs("ForCTC", **NO_DROPS | {drop: 1.0}, mask_time_prob=0.0).train()
    mine = ours("ForCTC", their, tmp_path).train()
    wave, mask = waves()
    with torch.no_grad():
        agree(mine(wave, mask), their(wave, mask), 1e-5)
        assert not torch.equal(mine(wave, mask).logits, mine.eval()(wave, mask).logits)


def test_clips_too_short_for_a_span_are_left_alone() -> None:
    lengths = torch.tensor([9, 10, 12])
    masked = span_mask(3, 12, 1.0, 10, 2, lengths, lengths.device)
    assert masked.sum(1).tolist() == [0, 10, 10]
    assert not span_mask(2, 5, 1.0, 10, 2, None, torch.device("cpu")).any()


def test_training_masks_frames_and_channels() -> None:
    masked = model(
        "Model",
        **NO_DROPS,
        mask_time_prob=0.6,
        mask_time_length=4,
        mask_feature_prob=0.5,
        mask_feature_length=4,
    )
    seen: list[Tensor] = []
    masked.encoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].x))
    wave, mask = waves()
    with torch.no_grad():
        masked(wave, mask)
        masked.train()(wave, mask)
    assert torch.equal(
        seen[0][0], masked.encoder.stem.projection(masked.encoder.stem.features(wave))[0]
    )
    vector, channels = masked.encoder.stem.mask_vector, (seen[1] == 0).all(1)  # (B, D)
    assert channels.any(1).all() and not channels.all()
    frames = (seen[1] == torch.where(channels[:, None], 0.0, vector)).all(2)
    assert frames.any(1).all() and not frames.all()
    kept = ~(frames[..., None] | channels[:, None])
    assert torch.equal(seen[1][kept], seen[0][kept])


@pytest.mark.parametrize(
    "everything",
    [
        {"mask_time_prob": 1.0, "mask_time_length": 59},
        {"mask_time_prob": 0.0, "mask_feature_prob": 1.0, "mask_feature_length": 32},
    ],
    ids=["frames", "channels"],
)
def test_masks_of_everything_are_theirs(everything: dict[str, Any], tmp_path: Path) -> None:
    their = theirs("Model", **NO_DROPS, **everything).train()
    mine = ours("Model", their, tmp_path).train()
    wave, _ = waves()
    with torch.no_grad():
        agree(mine(wave), their(wave), 1e-5)


def test_masking_can_be_switched_off(tmp_path: Path) -> None:
    their = theirs("Model", mask_time_prob=1.0, apply_spec_augment=False, **NO_DROPS).train()
    mine = ours("Model", their, tmp_path).train()
    wave, _ = waves()
    chosen = torch.ones(3, 59, dtype=torch.bool)
    with torch.no_grad():
        agree(mine(wave, mask_time_indices=chosen), their(wave, mask_time_indices=chosen), 1e-5)


@pytest.mark.parametrize(
    "head", ["ForSequenceClassification", "ForAudioFrameClassification", "ForXVector"]
)
def test_weighted_sum_counts_skipped_layers(head: str) -> None:
    """With every layer dropped all states are the first, and their weighted sum is it."""
    settings = SIZES | NO_DROPS | {"mask_time_prob": 0.0}
    dropping = model(head, **settings | {"layerdrop": 1.0}, use_weighted_layer_sum=True).train()
    wave, mask = waves()
    with torch.no_grad():
        out = dropping(wave, mask, output_hidden_states=True)
        first = out.hidden_states[0]
        lengths = dropping.data2vec_audio.frames(wave, mask, adapted=False)
        logits = dropping.read(first, lengths, None)[1]
    assert len(out.hidden_states) == 4 and all(
        torch.equal(state, first) for state in out.hidden_states
    )
    torch.testing.assert_close(out.logits, logits, atol=1e-5, rtol=1e-5)


def test_every_parameter_has_a_gradient_when_layers_are_dropped() -> None:
    dropping = model(
        "ForSequenceClassification", layerdrop=0.7, use_weighted_layer_sum=True
    ).train()
    torch.manual_seed(0)
    wave, mask = waves()
    dropping(wave, mask, labels=torch.tensor([0, 1, 2])).loss.backward()
    assert all(p.grad is not None for p in dropping.parameters())


def test_adapter_layers_are_never_dropped() -> None:
    dropping = model("ForCTC", layerdrop=1.0, add_adapter=True).train()
    wave, _ = waves()
    with torch.no_grad():
        assert dropping(wave).logits.shape[1] == dropping.eval()(wave).logits.shape[1] == 8


def test_checkpointing_changes_no_bit() -> None:
    wave, mask = waves()
    results = []
    for checkpointing in (False, True):
        ctc = model("ForCTC").train()
        if checkpointing:
            ctc.gradient_checkpointing_enable()
        torch.manual_seed(3)
        out = ctc(
            wave, mask, labels=torch.tensor([[1, 2], [3, 4], [5, -100]]), output_hidden_states=True
        )
        out.loss.backward()
        results.append([out.loss.detach(), *out.hidden_states, *(p.grad for p in ctc.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_freezing_the_feature_encoder_freezes_what_theirs_does(tmp_path: Path) -> None:
    their = theirs("ForCTC")
    mine = ours("ForCTC", their, tmp_path)
    for frozen in (mine, their):
        frozen.freeze_feature_encoder()
    trained = {name for name, p in their.named_parameters() if p.requires_grad}
    for name, keys in mine.names().items():
        needed = [key in trained for key in ([keys] if isinstance(keys, str) else keys)]
        assert needed == [mine.get_parameter(name).requires_grad] * len(needed), name
    wave, mask = waves()
    mine.train()(wave, mask, labels=torch.tensor([[1], [2], [3]])).loss.backward()
    assert mine.data2vec_audio.encoder.stem.convs[0].weight.grad is None


def test_freezing_the_base_model_trains_the_head_alone() -> None:
    head = model("ForXVector", use_weighted_layer_sum=True)
    head.freeze_base_model()
    trained = {name for name, p in head.named_parameters() if p.requires_grad}
    assert trained and not any(name.startswith("data2vec_audio.") for name in trained)
    assert "layer_weights" in trained and "objective.weight" in trained


def test_one_label_is_a_regression() -> None:
    head = model("ForSequenceClassification", num_labels=1)
    wave, mask = waves()
    labels = torch.tensor([0.3, -1.0, 2.0])
    with torch.no_grad():
        out = head(wave, mask, labels=labels)
    assert float(out.loss) == pytest.approx(float(((out.logits[:, 0] - labels) ** 2).mean()))


def test_their_weighted_sum_still_fails_under_layer_drop() -> None:
    """When this fails, the row of docs about it can go."""
    config = transformers.Data2VecAudioConfig(
        **SIZES | {"layerdrop": 1.0}, use_weighted_layer_sum=True
    )
    their = transformers.Data2VecAudioForSequenceClassification(config).train()
    with pytest.raises(RuntimeError):
        their(waves()[0])
