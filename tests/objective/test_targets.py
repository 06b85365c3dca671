"""Targets against a naive numpy version, with every combination of norms; the loss; the collapse
monitors."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest
import torch
from torch.nn.functional import mse_loss, smooth_l1_loss

from d2v_pretrain.objective.loss import RegressionLoss
from d2v_pretrain.objective.statistics import spread
from d2v_pretrain.objective.targets import Targets

Names = tuple[str, ...]
LAYER_NORMS, MEAN_NORMS = ("batch", "instance", "group", "layer"), ("layer", "instance")


def subsets(names: Names) -> list[Names]:
    return list(chain.from_iterable(combinations(names, n) for n in range(len(names) + 1)))


def standardised(x: np.ndarray, part: np.ndarray) -> np.ndarray:
    return (x - part.mean()) / np.sqrt(part.var() + 1e-5)


def normed(x: np.ndarray, name: str, valid: np.ndarray) -> np.ndarray:
    """One norm of (B, T, D), one group of numbers at a time."""
    y = np.empty_like(x)
    rows, size, width = x.shape
    if name == "batch":
        for d in range(width):
            y[..., d] = standardised(x[..., d], x[..., d][valid])
    for b in range(rows):
        if name == "group":
            y[b] = standardised(x[b], x[b, valid[b]])
        for d in range(width):
            if name == "instance":
                y[b, :, d] = standardised(x[b, :, d], x[b, valid[b], d])
        for t in range(size):
            if name == "layer":
                y[b, t] = standardised(x[b, t], x[b, t])
    return y


def naive(
    layers: np.ndarray, layer_norms: tuple[str, ...], mean_norms: tuple[str, ...], valid: np.ndarray
) -> np.ndarray:
    """fairseq's order: BN, IN, group, LN of each layer; mean; LN, IN."""
    done = []
    for layer in layers:
        for name in LAYER_NORMS:
            if name in layer_norms:
                layer = normed(layer, name, valid)
        done.append(layer)
    mean = sum(done) / len(done)
    for name in MEAN_NORMS:
        if name in mean_norms:
            mean = normed(mean, name, valid)
    return mean


@pytest.mark.parametrize("padded", [False, True])
def test_every_combination_of_norms(padded: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    layers = torch.randn(3, 2, 6, 4, generator=generator) * 3 + torch.randn(
        3, 1, 1, 4, generator=generator
    )
    valid = torch.arange(6) < torch.tensor([[6], [4]]) if padded else None
    counted = np.ones((2, 6), bool) if valid is None else valid.numpy()
    for layer_norms in subsets(LAYER_NORMS):
        for mean_norms in subsets(MEAN_NORMS):
            ours = Targets(3, "ffn", layer_norms[::-1], mean_norms[::-1])(list(layers), valid)
            expected = naive(layers.double().numpy(), layer_norms, mean_norms, counted)
            torch.testing.assert_close(ours, torch.tensor(expected).float(), atol=2e-5, rtol=1e-4)


def test_padding_counts_only_where_the_reference_is_wanted() -> None:
    layers, valid = torch.randn(2, 2, 6, 4), torch.arange(6) < torch.tensor([[6], [3]])
    everything = Targets(2)(list(layers), None)
    assert torch.equal(Targets(2, count_padding=True)(list(layers), valid), everything)
    ours = Targets(2)(list(layers), valid)
    torch.testing.assert_close(ours[0], everything[0])
    assert not torch.allclose(ours[1], everything[1], atol=1e-2)
    torch.testing.assert_close(ours[1, :3], Targets(2)(list(layers[:, 1:, :3]), None)[0])


def test_targets_are_float32_and_leave_the_layers_alone() -> None:
    """The reference adds into its first layer in place."""
    layers = [torch.randn(2, 3, 4, dtype=torch.bfloat16) for _ in range(2)]
    before = [layer.clone() for layer in layers]
    for norms in ((), ("instance",)):
        assert Targets(2, "ffn", norms)(layers, None).dtype == torch.float32
    floats = [layer.float() for layer in before]
    Targets(2, "ffn", ())(floats, None)
    assert all(torch.equal(a, b) for a, b in zip(layers, before, strict=True))
    assert all(torch.equal(a, b.float()) for a, b in zip(floats, before, strict=True))


def test_wrong_names_and_numbers_of_layers_are_refused() -> None:
    with pytest.raises(AssertionError, match="unknown target norms"):
        Targets(2, "ffn", ("instnace",))
    with pytest.raises(AssertionError, match="unknown target norms"):
        Targets(2, "ffn", (), ("group",))
    with pytest.raises(AssertionError, match="top_k is 2"):
        Targets(2)([torch.zeros(1, 2, 3)], None)


def test_the_published_loss_is_root_d_times_the_mean_square() -> None:
    pred, target = torch.randn(7, 16), torch.randn(7, 16)
    loss = RegressionLoss()(pred, target)
    assert loss.shape == (7,)
    torch.testing.assert_close(loss.sum() / 7, 16**0.5 * mse_loss(pred, target))
    torch.testing.assert_close(
        RegressionLoss(0, 1.0)(pred, target).sum(), mse_loss(pred, target, reduction="sum")
    )


@pytest.mark.parametrize("beta", [0.25, 2.0, 4.0])
def test_smooth_l1_by_its_formula(beta: float) -> None:
    pred, target = 3 * torch.randn(50, 8), torch.zeros(50, 8)
    error = pred.abs()
    expected = torch.where(error < beta, error**2 / (2 * beta), error - beta / 2)
    torch.testing.assert_close(RegressionLoss(beta, 1.0)(pred, target), expected.sum(1))
    mean = smooth_l1_loss(pred, target, beta=beta)  # BEiT's: the mean over all elements
    torch.testing.assert_close(RegressionLoss(beta, "dim")(pred, target).mean(), mean)


def test_the_loss_is_float32_whatever_comes() -> None:
    loss = RegressionLoss()(torch.randn(2, 3).bfloat16(), torch.randn(2, 3))
    assert loss.dtype == torch.float32


def test_spread_against_loops() -> None:
    rows, position = torch.randn(40, 5, dtype=torch.float64), torch.randint(0, 6, (40,))
    position[0] = 9  # seen once: says nothing about a position
    overall, fixed = spread(rows.float(), position)
    expected = [np.sqrt(rows[position == p].numpy().var(0, ddof=1) + 1e-6) for p in range(6)]
    assert float(overall) == pytest.approx(
        float(np.sqrt(rows.numpy().var(0, ddof=1) + 1e-6).mean()), rel=1e-5
    )
    assert float(fixed) == pytest.approx(float(np.mean(expected)), rel=1e-5)


def test_spread_sees_targets_that_became_a_function_of_position() -> None:
    position = torch.arange(10).repeat(20)
    table = torch.randn(10, 8)
    overall, fixed = spread(table[position], position)
    assert float(overall) > 0.5 and float(fixed) < 2e-3
    assert not spread(table, torch.arange(10))[1].isfinite()
