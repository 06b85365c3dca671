"""What an encoder leaves behind, forgets and reads beside its input; biases of single blocks."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from d2v_pretrain.models.attention import Attention, KeyValues
from d2v_pretrain.models.block import Block, Context, Trace
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.models.positions import Alibi, RelativeBias
from d2v_pretrain.models.stems import TextStem, VisionStem
from d2v_pretrain.types import Batch, Mask, Tokens

D, DEPTH, T = 16, 4, 6


def randomised(module: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return module.eval()


def encoder(**parts: Any) -> Encoder:
    block = partial(Block, D, 2, dropout=0.3, attention_dropout=0.3)
    return randomised(Encoder(TextStem(D, 20, 9), block, D, DEPTH, **parts))


def tokens(rows: int = 3) -> Tokens:
    valid = torch.arange(T) < torch.tensor([T, 4, 2])[:rows, None]
    return Tokens(torch.randn(rows, T, D, generator=torch.Generator().manual_seed(1)), (T,), valid)


@pytest.mark.parametrize("norm_first", [False, True])
def test_trace_holds_what_hooks_see(norm_first: bool) -> None:
    model = encoder(bias=Alibi(2), extra_tokens=1, final_norm=True)
    for block in model.blocks:
        block.norm_first = norm_first
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    last = []
    model.blocks[-1].register_forward_hook(lambda _, __, out: last.append(out[0]))
    trace = Trace(attentions=True)
    traced = model(tokens(), trace=trace)
    assert len(trace.hidden) == DEPTH + 1
    assert all(torch.equal(a, b) for a, b in zip(trace.hidden, seen + last, strict=True))
    torch.testing.assert_close(
        traced.x, model(tokens()).x, atol=1e-5, rtol=1e-5
    )  # the fused kernel
    assert trace.attentions is not None
    for weights in trace.attentions:
        assert weights.shape == (3, 2, T + 1, T + 1)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, T + 1))
        assert (
            not weights[1, :, :, 5:].any() and not weights[2, :, :, 3:].any()
        )  # CLS and so many valid tokens


def test_attentions_are_the_softmax_written_out() -> None:
    module = randomised(Attention(D, 2)).double()
    x, bias = (
        torch.randn(2, T, D, dtype=torch.float64),
        torch.randn(2, 2, T, T, dtype=torch.float64),
    )
    weights: list[Tensor] = []
    module(x, bias, weights)
    q, k, _ = (y.view(2, T, 2, D // 2).transpose(1, 2) for y in module.qkv(x).chunk(3, -1))
    for head in range(2):
        for row in range(2):
            logits = q[row, head] @ k[row, head].T / (D // 2) ** 0.5 + bias[row, head]
            expected = logits.exp() / logits.exp().sum(-1, keepdim=True)
            torch.testing.assert_close(weights[0][row, head], expected, rtol=1e-12, atol=0)


def test_states_are_complete_under_layer_drop() -> None:
    model = encoder(layer_drop=0.5).train()
    ran: list[int] = []
    for depth, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, depth=depth: ran.append(depth))
    counts = set()
    for seed in range(6):
        torch.manual_seed(seed)
        ran.clear()
        trace = Trace(attentions=True)
        model(tokens(), trace=trace)
        counts.add(len(ran))
        assert len(trace.hidden) == DEPTH + 1 and len(trace.attentions or []) == len(ran)
        for depth in range(DEPTH):
            assert torch.equal(trace.hidden[depth], trace.hidden[depth + 1]) == (depth not in ran)
    assert len(counts) > 2


@pytest.mark.parametrize("traced", [None, False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_checkpointing_changes_no_bit(masked: bool, traced: bool | None) -> None:
    """Dropout, layer drop, biases, targets of the last blocks: outputs and every gradient."""
    model = encoder(bias=Alibi(2), layer_drop=0.3, layer_bias=lambda: Alibi(2)).train()
    mask = Mask.of(torch.arange(T).expand(3, T) % 3 == 0) if masked else None
    results = []
    for enabled in (False, True):
        model.checkpointing = enabled
        model.zero_grad()
        torch.manual_seed(7)
        trace = None if traced is None else Trace(traced)
        out = model(tokens(), mask, top_k=2, trace=trace)
        (out.x.square().sum() + sum(layer.sum() for layer in out.layers)).backward()
        results.append(
            [out.x, *out.layers, *(p.grad for p in model.parameters() if p.grad is not None)]
        )
        if trace is not None:
            assert len(trace.hidden) == DEPTH + 1
    assert len(results[0]) > 40
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_checkpointing_forgets_the_inside_of_blocks() -> None:
    """Bytes that the graph keeps: fewer than a third."""
    model, kept = encoder().train(), []

    def saved(enabled: bool) -> int:
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        model.checkpointing = enabled
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(tokens())
        return total

    kept = [saved(enabled) for enabled in (False, True)]
    assert kept[1] < kept[0] / 3


def test_biases_of_single_blocks_are_added_to_the_shared_one() -> None:
    """The same table in every block, twice: as if the shared one were doubled."""
    stem = VisionStem(D, 4)
    both = Encoder(
        stem,
        partial(Block, D, 2),
        D,
        2,
        bias=RelativeBias(2, (2, 3)),
        layer_bias=lambda: RelativeBias(2, (2, 3)),
        extra_tokens=1,
    )
    randomised(both)
    shared = Encoder(
        stem, partial(Block, D, 2), D, 2, bias=RelativeBias(2, (2, 3)), extra_tokens=1
    ).eval()
    shared.load_state_dict(
        {k: v for k, v in both.state_dict().items() if not k.startswith("layer_biases")}
    )
    assert both.layer_biases is not None and both.bias is not None and shared.bias is not None
    for own in both.layer_biases:
        own.load_state_dict(both.bias.state_dict())
    image = Batch(torch.randn(2, 3, 8, 12), torch.arange(2))
    with torch.no_grad():
        shared.bias.table.mul_(2)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(both.encode(image).x, shared.encode(image).x)
    with torch.no_grad():
        both.layer_biases[1].table.zero_()
    assert not torch.allclose(both.encode(image).x, shared.encode(image).x)


def test_cross_attention_is_attention_to_the_context() -> None:
    """With the context for x as well, both kinds are the same attention; keys are computed once."""
    module = randomised(Attention(D, 2))
    x = torch.randn(2, T, D)
    torch.testing.assert_close(module(x, context=x), module(x), atol=1e-6, rtol=1e-5)
    past = KeyValues()
    first = module(x[:, :2], past=past, context=x)
    assert past.keys is not None and past.keys.shape == (2, 2, T, D // 2)
    again = module(x[:, :2], past=past, context=torch.full_like(x, torch.nan))  # not read
    assert torch.equal(first, again)


def test_a_block_without_cross_attention_reads_no_states() -> None:
    with pytest.raises(AssertionError, match="cross attention"):
        Block(D, 2)(torch.zeros(1, 2, D), context=Context(states=torch.zeros(1, 3, D)))
