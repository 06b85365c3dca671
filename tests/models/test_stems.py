"""Stems: frame lengths, text positions, patches, masked versions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from d2v_pretrain.models.stems import AudioStem, TextStem, VisionStem
from d2v_pretrain.types import Batch, Mask

SMALL = ((8, 10, 5), (8, 3, 2), (8, 2, 2))


def batch_of(inputs: torch.Tensor, lengths: list[int] | None = None) -> Batch:
    return Batch(
        inputs, torch.arange(len(inputs)), None if lengths is None else torch.tensor(lengths)
    )


def test_frames_of_the_published_stem() -> None:
    with torch.device("meta"):
        stem = AudioStem(768)
    table = {
        400: 1,
        16_000: 49,
        32_000: 99,
        80_000: 249,
        160_000: 499,
        240_000: 749,
        250_000: 781,
        320_000: 999,
    }
    for samples, frames in table.items():
        assert stem.grid(torch.Size([3, samples])) == (frames,)
    lengths = stem.token_lengths(torch.tensor(list(table)))
    assert lengths is not None and lengths.tolist() == list(table.values())
    assert stem.token_lengths(None) is None


@pytest.mark.parametrize("samples", [30, 31, 77, 200, 201])
def test_audio_grid_and_lengths_are_what_forward_returns(samples: int) -> None:
    stem = AudioStem(12, SMALL)
    tokens = stem(batch_of(torch.randn(2, samples), [samples, 30]))
    assert tokens.grid == stem.grid(torch.Size([2, samples])) == (tokens.x.shape[1],)
    lengths = stem.token_lengths(torch.tensor([samples, 30]))
    assert tokens.valid is not None and lengths is not None
    assert tokens.valid.sum(1).tolist() == lengths.tolist()
    assert int(lengths[0]) == tokens.x.shape[1]


def test_audio_stem_is_conv_norm_gelu_then_norm_and_projection() -> None:
    stem, wave = AudioStem(12, SMALL, conv_bias=True), torch.randn(2, 203)
    x = wave[:, None]
    for conv, norm, (_, kernel, stride) in zip(stem.convs, stem.norms, SMALL, strict=True):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
        x = F.conv1d(x, conv.weight, conv.bias, stride)
        assert conv.kernel_size == (kernel,)
        x = F.gelu(F.layer_norm(x.mT, (8,), norm.weight, norm.bias)).mT
    expected = stem.projection(F.layer_norm(x.mT, (8,), stem.norm.weight, stem.norm.bias))
    torch.testing.assert_close(stem(batch_of(wave)).x, expected, atol=1e-5, rtol=1e-4)


def test_audio_features_do_not_depend_on_padding() -> None:
    stem, wave = AudioStem(12, SMALL), torch.randn(1, 155)
    alone = stem(batch_of(wave)).x
    tokens = stem(batch_of(F.pad(wave, (0, 100)), [155]))
    assert tokens.valid is not None
    torch.testing.assert_close(tokens.x[:, : alone.shape[1]], alone, atol=1e-6, rtol=1e-5)
    assert tokens.valid.sum() == alone.shape[1]


@pytest.mark.parametrize("init", ["kaiming", "smooth"])
def test_audio_inits_differ_and_are_finite(init: str) -> None:
    torch.manual_seed(0)
    stem = AudioStem(12, ((32, 10, 5), (32, 3, 2)), init=init)
    equal_taps = bool((stem.convs[1].weight == stem.convs[1].weight[..., :1]).all())
    assert equal_taps == (init == "smooth")
    assert stem(batch_of(torch.randn(1, 200))).x.isfinite().all()
    with pytest.raises(AssertionError, match="kaiming or smooth"):
        AudioStem(12, SMALL, init="other")


def test_replaced_puts_the_vector_at_masked_tokens_only() -> None:
    stem = AudioStem(6, SMALL, masked=True)
    batch = batch_of(torch.randn(2, 200))
    local = stem(batch)
    masked = torch.rand(2, local.x.shape[1]) < 0.5
    x = stem.replaced(batch, local, Mask.of(masked)).x
    assert stem.mask_vector is not None
    assert torch.equal(x[~masked], local.x[~masked])
    assert torch.equal(x[masked], stem.mask_vector.expand(int(masked.sum()), -1))
    with pytest.raises(AssertionError, match="mask vector"):
        AudioStem(6, SMALL).replaced(batch, local, Mask.of(masked))


def test_text_positions_count_real_tokens_from_two() -> None:
    """RoBERTa: padding has position 1 (a row of zeros); the first token has position 2 whatever
    precedes it."""
    stem = TextStem(8, 20, 10).eval()
    ids = torch.tensor([[0, 5, 6, 2, 1, 1], [0, 7, 8, 9, 10, 2]])
    tokens = stem(batch_of(ids, [4, 6]))
    assert tokens.valid is not None and tokens.valid.tolist() == [
        [True] * 4 + [False] * 2,
        [True] * 6,
    ]
    places = torch.tensor([[2, 3, 4, 5, 1, 1], [2, 3, 4, 5, 6, 7]])
    expected = stem.norm(stem.token.weight[ids] + stem.position.weight[places])
    torch.testing.assert_close(tokens.x, expected)
    alone = stem(batch_of(ids[:1, :4]))
    assert alone.valid is None
    torch.testing.assert_close(alone.x, tokens.x[:1, :4])


def test_text_padding_rows_are_zero_and_stay_so() -> None:
    stem = TextStem(8, 20, 10)
    assert not stem.token.weight[1].any() and not stem.position.weight[1].any()
    stem(batch_of(torch.tensor([[0, 5, 1]]), [2])).x.sum().backward()
    assert not stem.token.weight.grad[1].any() and not stem.position.weight.grad[1].any()  # type: ignore[index]


def test_text_masking_replaces_ids_before_the_norm() -> None:
    stem = TextStem(8, 20, 10).eval()
    batch = batch_of(torch.tensor([[0, 5, 6, 2, 1], [0, 7, 8, 9, 2]]), [4, 5])
    masked = torch.tensor([[False, True, False, False, False], [False, False, True, True, False]])
    random = torch.full((2, 5), -1.0)
    random[0, 2], random[1, 1] = 0.0, 0.999999
    shown = stem.replaced(batch, stem(batch), Mask.of(masked, random=random)).x
    changed = torch.tensor(
        [[0, 19, 4, 2, 1], [0, 18, 19, 19, 2]]
    )  # <mask> is last, regular tokens are 4 ... 18
    torch.testing.assert_close(shown, stem(batch_of(changed, [4, 5])).x)


def test_text_replaces_ids_for_every_clone() -> None:
    stem, ids = TextStem(8, 20, 10).eval(), torch.tensor([[0, 5, 6], [0, 7, 8]])
    masked = torch.eye(4, 3, dtype=torch.bool)
    masked[3, 0] = True
    local = stem(batch_of(ids)).repeat(2)
    shown = stem.replaced(batch_of(ids), local, Mask.of(masked)).x
    changed = torch.tensor([[19, 5, 6], [0, 19, 6], [0, 7, 19], [19, 7, 8]])
    torch.testing.assert_close(shown, stem(batch_of(changed)).x)


@pytest.mark.parametrize("init", ["xavier", "trunc"])
def test_vision_patches_are_one_linear_map_in_row_major_order(init: str) -> None:
    stem, images = VisionStem(10, 4, init=init), torch.randn(2, 3, 8, 12)
    torch.nn.init.normal_(stem.projection.bias)
    tokens = stem(batch_of(images))
    assert tokens.grid == stem.grid(images.shape) == (2, 3)
    matrix = stem.projection.weight.flatten(1)
    for number in range(6):
        r, c = 4 * (number // 3), 4 * (number % 3)
        patch = images[:, :, r : r + 4, c : c + 4].flatten(1)
        torch.testing.assert_close(
            tokens.x[:, number], patch @ matrix.T + stem.projection.bias, atol=1e-5, rtol=1e-4
        )
    with pytest.raises(AssertionError, match="patch"):
        stem.grid(torch.Size([1, 3, 9, 12]))
