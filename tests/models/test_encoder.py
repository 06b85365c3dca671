"""The encoder: stem, positions, visible tokens and blocks put together, padding, layer drop."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from d2v_pretrain.models.block import Block
from d2v_pretrain.models.encoder import Encoder, gather_rows
from d2v_pretrain.models.positions import Alibi, ConvPositions, RelativeBias, SinCosPositions
from d2v_pretrain.models.stems import AudioStem, TextStem, VisionStem
from d2v_pretrain.types import Batch, Mask, Tokens

D, HEADS, DEPTH = 16, 2, 3
STEM = ((8, 10, 5), (8, 3, 2))


def randomised(module: nn.Module, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return module.eval()


def encoder(stem: nn.Module, norm_first: bool = False, **parts: Any) -> Encoder:
    block = partial(Block, D, HEADS, norm_first=norm_first)
    return randomised(Encoder(stem, block, D, DEPTH, **parts))  # type: ignore[arg-type]


def audio(**parts: Any) -> Encoder:
    parts = {"positions": ConvPositions(D, 2, 6, 4, mask_padding=True)} | parts
    return encoder(AudioStem(D, STEM, masked=True), bias=Alibi(HEADS), **parts)


def text(**parts: Any) -> Encoder:
    return encoder(TextStem(D, 30, 40), input_norm=False, **parts)


def vision(bias: nn.Module | None = None, **parts: Any) -> Encoder:
    return encoder(VisionStem(D, 4, masked=True), bias=bias, extra_tokens=1, **parts)


def batch_of(inputs: Tensor, lengths: list[int] | None = None) -> Batch:
    return Batch(
        inputs, torch.arange(len(inputs)), None if lengths is None else torch.tensor(lengths)
    )


def some_mask(rows: int, size: int, count: int) -> Mask:
    masked = torch.zeros(rows, size, dtype=torch.bool)
    for row in masked:
        row[torch.randperm(size)[:count]] = True
    return Mask.of(masked)


def run_blocks(
    model: Encoder, x: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """All blocks by hand: the output, and every feed-forward and block output."""
    ffns, outputs = [], []
    x = model.input_norm(x)
    for block in model.blocks:
        x, ffn = block(x, bias)
        ffns.append(ffn)
        outputs.append(x)
    return model.final_norm(x), ffns, outputs


@pytest.mark.parametrize("tensor", ["ffn", "block"])
@pytest.mark.parametrize("top_k", [0, 1, 3])
def test_layers_are_the_outputs_of_the_last_blocks_in_order_without_extra_tokens(
    top_k: int, tensor: str
) -> None:
    model = vision(norm_first=True, input_norm=False, final_norm=True)
    batch = batch_of(torch.randn(2, 3, 8, 8))
    x = torch.cat([model.extra.expand(2, -1, -1), model.stem(batch).x], 1)
    out, ffns, outputs = run_blocks(model, x)
    encoded = model.encode(batch, top_k, tensor)
    torch.testing.assert_close(encoded.x, out)
    torch.testing.assert_close(encoded.tokens, out[:, 1:])
    expected = (ffns if tensor == "ffn" else outputs)[DEPTH - top_k :]
    torch.testing.assert_close(encoded.layers, [layer[:, 1:] for layer in expected])


def test_dropping_is_running_the_blocks_on_the_gathered_tokens() -> None:
    model, tokens, mask = text(), Tokens(torch.randn(3, 9, D), (9,)), some_mask(3, 9, 4)
    assert mask.kept is not None
    for row in range(3):
        visible = tokens.x[row, ~mask.masked[row]]
        expected, _, _ = run_blocks(model, visible[None])
        torch.testing.assert_close(model(tokens, mask).x[row], expected[0], atol=1e-5, rtol=1e-4)


def test_positions_and_biases_of_dropped_tokens_are_those_of_their_places() -> None:
    """Images: fixed positions and a relative bias, gathered from the whole grid."""
    model = vision(RelativeBias(HEADS, (3, 4)), positions=SinCosPositions(D))
    assert model.bias is not None and model.positions is not None
    tokens, mask = Tokens(torch.randn(2, 12, D), (3, 4)), some_mask(2, 12, 7)
    x = tokens.x + model.positions(tokens)
    full = model.bias((3, 4), None, 1)
    for row in range(2):
        places = [0, *(i + 1 for i in range(12) if not mask.masked[row, i])]
        visible = torch.cat([model.extra[0], x[row]])[places]
        expected, _, _ = run_blocks(model, visible[None], full[:, :, places][..., places])
        torch.testing.assert_close(model(tokens, mask).x[row], expected[0], atol=1e-5, rtol=1e-4)


def test_masked_tokens_do_not_reach_the_output_where_they_are_dropped() -> None:
    """Through no door: neither attention nor the convolutional positions."""
    model, x, mask = audio(), torch.randn(2, 14, D), some_mask(2, 14, 6)
    other = torch.where(mask.masked[..., None], torch.randn_like(x), x)
    assert torch.equal(model(Tokens(x, (14,)), mask).x, model(Tokens(other, (14,)), mask).x)


def test_a_mask_that_drops_nothing_changes_nothing() -> None:
    nothing = Mask.of(torch.zeros(2, 12, dtype=torch.bool))
    for model, grid in ((audio(), (12,)), (vision(positions=SinCosPositions(D)), (3, 4))):
        tokens = Tokens(torch.randn(2, 12, D), grid)
        torch.testing.assert_close(model(tokens, nothing).x, model(tokens).x, atol=1e-6, rtol=1e-5)


def test_drop_agrees_with_attention_that_must_not_look() -> None:
    """Leaving a token out is the same as forbidding every token to attend to it."""
    model, mask = text(), some_mask(2, 10, 4)
    x = torch.randn(2, 10, D)
    assert mask.kept is not None
    hidden = model(Tokens(x, (10,), ~mask.masked)).x
    torch.testing.assert_close(
        model(Tokens(x, (10,)), mask).x, gather_rows(hidden, mask.kept), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("zero_padding", [True, False])
def test_audio_does_not_depend_on_padding(zero_padding: bool) -> None:
    model, wave = audio(zero_padding=zero_padding), torch.randn(1, 155)
    alone = model.encode(batch_of(wave), 2)
    beside = model.encode(batch_of(torch.nn.functional.pad(wave, (0, 88)), [155]), 2)
    size = alone.x.shape[1]
    assert beside.valid is not None and int(beside.valid.sum()) == size
    torch.testing.assert_close(beside.x[:, :size], alone.x, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        [t[:, :size] for t in beside.layers], alone.layers, atol=1e-5, rtol=1e-4
    )


def test_audio_depends_on_padding_as_published() -> None:
    """fairseq zeroes padding before the position stack only (HF_PARITY 0.6); mask_padding mends
    it."""
    model, wave = audio(positions=ConvPositions(D, 2, 6, 4), zero_padding=True), torch.randn(1, 155)
    alone = model.encode(batch_of(wave)).x
    beside = model.encode(batch_of(torch.nn.functional.pad(wave, (0, 88)), [155])).x
    assert not torch.allclose(beside[:, : alone.shape[1]], alone, atol=1e-3)


def test_text_does_not_depend_on_padding() -> None:
    model, ids = text(), torch.tensor([[0, 5, 9, 14, 2]])
    alone = model.encode(batch_of(ids), 1)
    beside = model.encode(
        batch_of(torch.cat([ids, torch.ones(1, 4, dtype=torch.int64)], 1), [5]), 1
    )
    torch.testing.assert_close(beside.x[:, :5], alone.x, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(beside.layers[0][:, :5], alone.layers[0], atol=1e-5, rtol=1e-4)


def test_rows_filled_up_with_padding_see_what_they_see_alone() -> None:
    """A short row keeps padding so that all rows keep the same number; its real tokens do not
    notice."""
    model, x = text(), torch.randn(2, 8, D)
    masked = torch.tensor([[0, 1, 0, 0, 1, 0, 1, 0], [1, 0, 0, 1, 0, 0, 0, 0]], dtype=torch.bool)
    padding = torch.tensor([[0] * 8, [0] * 5 + [1] * 3], dtype=torch.bool)
    mask = Mask.of(masked, masked | (padding & torch.tensor([[0] * 7 + [1]], dtype=torch.bool)))
    assert mask.kept is not None and mask.kept.tolist() == [[0, 2, 3, 5, 7], [1, 2, 4, 5, 6]]
    out = model(Tokens(x, (8,), ~padding), mask)
    expected, _, _ = run_blocks(model, x[1:, [1, 2, 4]])
    torch.testing.assert_close(out.x[1:, :3], expected, atol=1e-5, rtol=1e-4)
    assert out.valid is not None and out.valid.tolist() == [[True] * 5, [True] * 3 + [False] * 2]


def test_unequal_rows_cannot_be_dropped() -> None:
    mask = Mask.of(torch.tensor([[True, False, False], [True, True, False]]))
    with pytest.raises(AssertionError, match="same number"):
        text()(Tokens(torch.randn(2, 3, D), (3,)), mask)


def test_layer_drop_skips_whole_blocks_and_leaves_zero_gradients() -> None:
    model = text(layer_drop=1.0, bias=Alibi(HEADS)).train()
    tokens = Tokens(torch.randn(2, 5, D), (5,))
    out = model(tokens).x
    assert torch.equal(out, tokens.x)
    out.sum().backward()
    for parameter in [*model.blocks.parameters(), *model.bias.parameters()]:
        assert parameter.grad is not None and not parameter.grad.any()
    assert not torch.equal(model.eval()(tokens).x, tokens.x)


def test_layer_drop_rate_and_drop_path_profile() -> None:
    torch.manual_seed(0)
    model = text(layer_drop=0.3, drop_path=0.2).train()
    assert [block.drop_path for block in model.blocks] == pytest.approx([0.0, 0.1, 0.2])
    calls = []
    for block in model.blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    tokens = Tokens(torch.randn(1, 2, D), (2,))
    for _ in range(300):
        model(tokens)
    assert abs(len(calls) - 0.7 * 900) < 4.5 * (0.3 * 0.7 * 900) ** 0.5


def test_every_parameter_has_a_gradient() -> None:
    models = {
        "audio": (audio(), torch.randn(2, 100)),
        "text": (text(), torch.randint(4, 29, (2, 6))),
        "vision": (vision(RelativeBias(HEADS, (2, 2))), torch.randn(2, 3, 8, 8)),
    }
    for name, (model, inputs) in models.items():
        model.encode(batch_of(inputs)).x.square().sum().backward()
        without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert without == (["stem.mask_vector"] if name != "text" else []), name


def test_gather_rows() -> None:
    x, index = torch.randn(2, 5, 3), torch.tensor([[4, 0], [2, 2]])
    assert torch.equal(gather_rows(x, index), torch.stack([x[0][[4, 0]], x[1][[2, 2]]]))
