"""Positions and attention biases against loops and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from d2v_pretrain.models.positions import (
    Alibi,
    ConvPositions,
    LearnedPositions,
    RelativeBias,
    SinCosPositions,
    alibi_slopes,
)
from d2v_pretrain.types import Tokens


def test_slopes_of_12_16_and_6_heads() -> None:
    assert alibi_slopes(12) == pytest.approx(
        [2.0**-i for i in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    )
    assert alibi_slopes(16) == pytest.approx([2 ** (-i / 2) for i in range(1, 17)])
    assert alibi_slopes(6) == pytest.approx([2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])
    assert alibi_slopes(1) == [2**-8]


def test_alibi_is_minus_slope_times_distance_times_scale() -> None:
    bias = Alibi(6)
    with torch.no_grad():
        bias.scale.copy_(torch.tensor([1.0, 2.0, 0.5, -3.0, 0.0, 1.5]))
    table = bias((7,), None, 0).detach()
    assert table.shape == (1, 6, 7, 7)
    for head, (slope, scale) in enumerate(
        zip(alibi_slopes(6), [1.0, 2.0, 0.5, 0.0, 0.0, 1.5], strict=True)
    ):
        for i in range(7):
            for j in range(7):
                assert float(table[0, head, i, j]) == pytest.approx(-slope * scale * abs(i - j))
    assert torch.equal(table, table.mT) and not table.diagonal(0, 2, 3).any()


def test_a_negative_alibi_scale_has_no_gradient() -> None:
    bias = Alibi(2)
    with torch.no_grad():
        bias.scale.copy_(torch.tensor([-1.0, 1.0]))
    bias((4,), None, 0).sum().backward()
    assert (
        bias.scale.grad is not None
        and float(bias.scale.grad[0]) == 0
        and float(bias.scale.grad[1]) < 0
    )


def gathered(full: Tensor, kept: Tensor, extra: int) -> Tensor:
    """Rows and columns of the visible tokens, one row of ``kept`` at a time, extra tokens in
    front."""
    picks = [torch.cat([torch.arange(extra), row + extra]) for row in kept]
    return torch.stack([full[0][:, pick][:, :, pick] for pick in picks])


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_alibi_of_visible_tokens_is_gathered_from_the_whole(extra: int) -> None:
    bias, kept = Alibi(3), torch.tensor([[0, 2, 5], [1, 3, 8]])
    full = bias((9,), None, extra)
    assert full.shape == (1, 3, 9 + extra, 9 + extra)
    assert not full[:, :, :extra].any() and not full[..., :extra].any()
    assert torch.equal(bias((9,), kept, extra), gathered(full, kept, extra))


def beit_index(rows: int, columns: int) -> list[list[int]]:
    """BEiT's table index with the CLS token first, by loops."""
    size, cells = (
        (2 * rows - 1) * (2 * columns - 1),
        [(r, c) for r in range(rows) for c in range(columns)],
    )
    index = [[size + 2, *[size] * len(cells)]]
    for a in cells:
        offsets = [
            (a[0] - b[0] + rows - 1) * (2 * columns - 1) + a[1] - b[1] + columns - 1 for b in cells
        ]
        index.append([size + 1, *offsets])
    return index


@pytest.mark.parametrize("grid", [(3, 3), (2, 4)])
def test_relative_bias_is_beits_table_lookup(grid: tuple[int, int]) -> None:
    bias = RelativeBias(2, grid)
    nn.init.normal_(bias.table)
    index = torch.tensor(beit_index(*grid))
    assert index.max() + 1 == bias.table.shape[0]
    expected = bias.table[index].permute(2, 0, 1)[None]
    assert torch.equal(bias(grid, None, 1), expected)
    assert torch.equal(bias(grid, None, 0), expected[:, :, 1:, 1:])


@pytest.mark.parametrize("extra", [0, 1])
def test_relative_bias_of_visible_tokens_is_gathered_from_the_whole(extra: int) -> None:
    bias, kept = RelativeBias(2, (3, 4)), torch.tensor([[0, 5, 11], [2, 3, 4]])
    nn.init.normal_(bias.table)
    assert torch.equal(bias((3, 4), kept, extra), gathered(bias((3, 4), None, extra), kept, extra))


def test_relative_bias_has_732_rows_and_starts_at_zero() -> None:
    bias = RelativeBias(12, (14, 14))
    assert bias.table.shape == (732, 12) and not bias.table.any()
    with pytest.raises(AssertionError, match="grid"):
        bias((7, 7), None, 1)


def between(image: Tensor, row: float, column: float) -> Tensor:
    """Bilinear between the four cells around a place, of (rows, columns, H); beyond the edge counts
    the edge."""
    rows, columns = image.shape[:2]
    row, column = min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)
    top, left = int(row), int(column)
    down, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
    a, b = row - top, column - left
    upper, lower = ((1 - b) * image[r, left] + b * image[r, right] for r in (top, down))
    return (1 - a) * upper + a * lower


@pytest.mark.parametrize("grid", [(3, 4), (5, 2), (1, 1)], ids=str)
def test_a_resized_table_is_read_between_its_rows(grid: tuple[int, int]) -> None:
    bias = RelativeBias(2, (2, 4), resize=True).double()
    nn.init.normal_(bias.table)
    image, (rows, columns) = bias.table[:-3].view(3, 7, 2), grid
    scale = 3 / (2 * rows - 1), 7 / (2 * columns - 1)
    cells = [(r, c) for r in range(rows) for c in range(columns)]
    found = bias(grid, None, 1)[0]
    for i, (r, c) in enumerate(cells, start=1):
        for j, (y, x) in enumerate(cells, start=1):
            places = (
                (r - y + rows - 1 + 0.5) * scale[0] - 0.5,
                (c - x + columns - 1 + 0.5) * scale[1] - 0.5,
            )
            torch.testing.assert_close(found[:, i, j], between(image, *places), atol=1e-12, rtol=0)
    assert torch.equal(found[:, 0, 0], bias.table[-1]) and torch.equal(
        found[:, 0, -1], bias.table[-3]
    )
    assert torch.equal(found[:, -1, 0], bias.table[-2])


def test_learned_positions_know_rows_from_columns() -> None:
    """Resizing a table and turning it commute; a table of another grid is read as it is for its
    own."""
    upright, turned = LearnedPositions(8, (2, 5)), LearnedPositions(8, (5, 2))
    with torch.no_grad():
        upright.table.normal_()
        turned.table[:, 1:] = (
            upright.table[:, 1:].unflatten(1, (2, 5)).transpose(1, 2).flatten(1, 2)
        )
        assert torch.equal(upright(Tokens(torch.zeros(1, 10, 8), (2, 5))), upright.table[:, 1:])
        a = upright(Tokens(torch.zeros(1, 12, 8), (3, 4))).unflatten(1, (3, 4))
        b = turned(Tokens(torch.zeros(1, 12, 8), (4, 3))).unflatten(1, (4, 3))
    torch.testing.assert_close(a, b.transpose(1, 2))


def mae_sincos(width: int, rows: int, columns: int) -> np.ndarray:
    """MAE's ``get_2d_sincos_pos_embed``: meshgrid with the column first."""
    omega = 1 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows))).reshape(2, -1)
    halves = [np.einsum("m,d->md", positions, omega) for positions in grid]
    return np.concatenate([f(half) for half in halves for f in (np.sin, np.cos)], axis=1)


@pytest.mark.parametrize("grid", [(14, 14), (3, 5)])
def test_sincos_positions_are_maes(grid: tuple[int, int]) -> None:
    tokens = Tokens(torch.zeros(2, grid[0] * grid[1], 32), grid)
    ours = SinCosPositions(32)(tokens)
    torch.testing.assert_close(
        ours[0], torch.tensor(mae_sincos(32, *grid)).float(), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(SinCosPositions(32, 0.5)(tokens), ours / 2)


def convolved(module: ConvPositions, x: Tensor) -> Tensor:
    """fairseq's stack, channels first, with its trimming of even kernels."""
    size = x.shape[1]
    for conv in module.convs:
        assert isinstance(conv, nn.Conv1d)
        y = conv(x.mT)[..., :size].mT
        mean, variance = y.mean(-1, keepdim=True), y.var(-1, keepdim=True, correction=0)
        y = (y - mean) / (variance + 1e-5).sqrt()
        x = y * 0.5 * (1 + torch.erf(y / 2**0.5))
    return x


@pytest.mark.parametrize(("depth", "total", "kernel"), [(5, 95, 19), (2, 8, 4), (3, 3, 3)])
def test_conv_positions_are_a_stack_of_convolutions(depth: int, total: int, kernel: int) -> None:
    module, x = ConvPositions(16, depth, total, 4), torch.randn(2, 23, 16)
    assert all(conv.kernel_size == (kernel,) for conv in module.convs)
    torch.testing.assert_close(module(Tokens(x, (23,))), convolved(module, x), atol=1e-5, rtol=1e-4)


def test_conv_positions_depend_on_padding_as_published_or_not_at_all() -> None:
    """Zeros at padding are not enough: bias and norm make them non-zero from layer two on (the
    documented leak)."""
    x, valid = torch.randn(1, 30, 16), torch.arange(40)[None] < 30
    padded = torch.cat([x, torch.zeros(1, 10, 16)], 1)
    for mask_padding, agrees in ((True, True), (False, False)):
        torch.manual_seed(0)
        module = ConvPositions(16, 3, 15, 4, mask_padding)
        alone, beside = module(Tokens(x, (30,))), module(Tokens(padded, (40,), valid))[:, :30]
        assert torch.allclose(alone, beside, atol=1e-5) == agrees
        reach = 2 * 2  # kernel 5, all but the first layer
        torch.testing.assert_close(
            alone[:, : 30 - reach], beside[:, : 30 - reach], atol=1e-5, rtol=1e-4
        )
