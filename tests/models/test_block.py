"""Attention, block and convolution against their formulas written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_pretrain.models.attention import Attention
from d2v_pretrain.models.block import Block
from d2v_pretrain.models.conv import conv_last, conv_lengths
from d2v_pretrain.models.init import initialise_blocks


def randomised(module: nn.Module, seed: int = 0, std: float = 0.3) -> nn.Module:
    """Every parameter drawn anew: fresh biases are 0 and norms 1, which hides whoever forgets
    them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, std, generator=generator)
    return module.eval()


def explicit_attention(module: Attention, x: Tensor, bias: Tensor) -> Tensor:
    """One head and one row at a time; ``bias`` (B, H, T, T) is added to the logits."""
    rows, width = len(x), x.shape[-1]
    d = width // module.heads
    bias_free_key = module.qkv.bias is None
    biases = (
        [module.q_bias, torch.zeros(width), module.v_bias]
        if bias_free_key
        else module.qkv.bias.split(width)
    )
    q, k, v = (x @ w.T + b for w, b in zip(module.qkv.weight.split(width), biases, strict=True))
    y = torch.zeros_like(x)
    for row in range(rows):
        for head in range(module.heads):
            part = slice(head * d, head * d + d)
            logits = q[row, :, part] @ k[row, :, part].T / d**0.5 + bias[row, head]
            y[row, :, part] = logits.softmax(-1) @ v[row, :, part]
    return y @ module.out.weight.T + module.out.bias


@pytest.mark.parametrize("key_bias", [True, False])
@pytest.mark.parametrize("kind", ["none", "float", "broadcast", "bool"])
def test_attention_is_the_softmax_written_out(key_bias: bool, kind: str) -> None:
    module = randomised(Attention(12, 3, 0.5, key_bias))
    assert isinstance(module, Attention)
    torch.manual_seed(1)
    x, allowed = torch.randn(2, 5, 12), torch.rand(2, 1, 1, 5) < 0.6
    allowed[..., 0] = True
    bias: dict[str, Tensor | None] = {
        "none": None,
        "float": torch.randn(2, 3, 5, 5),
        "broadcast": torch.randn(1, 3, 5, 5),
        "bool": allowed,
    }
    given = bias[kind]
    added = torch.zeros(2, 3, 5, 5)
    if kind == "bool":
        added = added.masked_fill(~allowed, float("-inf"))
    elif given is not None:
        added = added + given
    torch.testing.assert_close(
        module(x, given), explicit_attention(module, x, added), atol=1e-6, rtol=1e-5
    )


def test_attention_drops_probabilities_in_training_only() -> None:
    module = randomised(Attention(8, 2, dropout=0.5))
    x = torch.randn(1, 6, 8)
    assert torch.equal(module(x), module(x))
    module.train()
    assert not torch.equal(module(x), module(x))


@pytest.mark.parametrize("layer_scale", [None, 0.1])
@pytest.mark.parametrize("norm_first", [False, True])
def test_block_is_its_formula(norm_first: bool, layer_scale: float | None) -> None:
    block = randomised(
        Block(12, 3, 2.5, norm_first=norm_first, layer_scale=layer_scale, norm_eps=1e-3)
    )
    assert isinstance(block, Block)
    x, bias = torch.randn(2, 5, 12), torch.randn(2, 3, 5, 5)

    def norm(layer: nn.LayerNorm, y: Tensor) -> Tensor:
        mean, variance = y.mean(-1, keepdim=True), y.var(-1, keepdim=True, correction=0)
        return (y - mean) / (variance + 1e-3).sqrt() * layer.weight + layer.bias

    def mlp(y: Tensor) -> Tensor:
        hidden = y @ block.fc1.weight.T + block.fc1.bias
        assert hidden.shape[-1] == 30
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        return hidden @ block.fc2.weight.T + block.fc2.bias

    one = torch.ones(12)
    g1, g2 = (one if g is None else g for g in (block.gamma1, block.gamma2))
    if norm_first:
        y = x + g1 * explicit_attention(block.attention, norm(block.norm1, x), bias)
        ffn = mlp(norm(block.norm2, y))
        out = y + g2 * ffn
    else:
        y = norm(block.norm1, x + g1 * explicit_attention(block.attention, x, bias))
        ffn = mlp(y)
        out = norm(block.norm2, y + g2 * ffn)
    ours = block(x, bias)
    torch.testing.assert_close(ours, (out, ffn), atol=1e-5, rtol=1e-4)


def test_drop_path_drops_whole_rows_and_keeps_the_mean() -> None:
    block = randomised(Block(4, 1, dropout=0.0, attention_dropout=0.0, drop_path=0.25)).train()
    y = torch.ones(4000, 3, 4)
    dropped = block._branch(y, None)
    assert all(len(row.unique()) == 1 for row in dropped)
    assert sorted(dropped.unique().tolist()) == pytest.approx([0.0, 1 / 0.75])
    assert float(dropped.mean()) == pytest.approx(1, abs=0.04)
    assert torch.equal(block.eval()._branch(y, None), y)


def test_the_target_tensor_is_before_dropout_and_scale() -> None:
    """The teacher is in eval mode, but the student's own ffn output must be the plain feed-forward
    output, too."""
    block = Block(8, 2, dropout=0.9, attention_dropout=0.0, layer_scale=1e-4)
    x = torch.randn(1, 3, 8)
    seen: list[Tensor] = []
    block.fc2.register_forward_hook(lambda _, __, out: seen.append(out))
    _, ffn = block(x)
    assert torch.equal(ffn, seen[0])


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (4, 1, 2), (3, 2, 0), (5, 3, 0)]
)
def test_conv_last_over_a_sequence(groups: int, kernel: int, stride: int, padding: int) -> None:
    conv = nn.Conv1d(8, 12, kernel, stride, padding, groups=groups)
    x = torch.randn(2, 17, 8)
    torch.testing.assert_close(conv_last(x, conv), conv(x.mT).mT, atol=1e-6, rtol=1e-5)


def test_conv_last_over_a_grid() -> None:
    conv = nn.Conv2d(8, 12, 3, padding=1, groups=2)
    x = torch.randn(2, 5, 7, 8)
    torch.testing.assert_close(conv_last(x, conv), conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def test_conv_lengths_are_what_convolutions_return() -> None:
    for n in range(5, 40):
        for kernel, stride in ((2, 2), (3, 2), (5, 3), (1, 1)):
            length = F.conv1d(torch.zeros(1, 1, n), torch.zeros(1, 1, kernel), stride=stride).shape[
                -1
            ]
            assert int(conv_lengths(torch.tensor(n), kernel, stride)) == length


def test_bert_init() -> None:
    blocks = nn.ModuleList([randomised(Block(64, 4)) for _ in range(2)])
    norms = [p.clone() for p in blocks[0].norm1.parameters()]
    initialise_blocks(blocks, "bert")
    for block in blocks:
        for linear in (block.attention.qkv, block.attention.out, block.fc1, block.fc2):
            assert float(linear.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
            assert not linear.bias.any()
    assert all(torch.equal(a, b) for a, b in zip(norms, blocks[0].norm1.parameters(), strict=True))


def test_beit_init_cuts_at_one_deviation_and_shrinks_with_depth() -> None:
    """A normal of .02 cut at +-.02 has .54 of its deviation."""
    blocks = nn.ModuleList([Block(64, 4, key_bias=False) for _ in range(3)])
    initialise_blocks(blocks, "beit")
    for depth, block in enumerate(blocks, start=1):
        for linear, factor in (
            (block.attention.qkv, 1.0),
            (block.fc1, 1.0),
            (block.fc2, (2 * depth) ** -0.5),
        ):
            assert float(linear.weight.detach().abs().max()) <= 0.02 * factor + 1e-9
            assert float(linear.weight.detach().std()) == pytest.approx(
                0.02 * 0.5396 * factor, rel=0.05
            )
        largest = float(block.attention.out.weight.detach().abs().max())
        assert largest == pytest.approx(0.02 * (2 * depth) ** -0.5, rel=0.02)
