"""Head and decoder: what stands at the gaps, and the convolutions written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_pretrain.models.encoder import gather_rows
from d2v_pretrain.objective.predictors import ConvDecoder, Head, projection
from d2v_pretrain.types import Mask


def some_mask(rows: int, size: int, count: int) -> Mask:
    masked = torch.zeros(rows, size, dtype=torch.bool)
    for row in masked:
        row[torch.randperm(size)[:count]] = True
    return Mask.of(masked)


def decoded(decoder: ConvDecoder, full: Tensor, grid: tuple[int, ...]) -> Tensor:
    """fairseq's ``Decoder1d`` and ``Decoder2d``, channels first."""
    x = full.mT.reshape(len(full), -1, *grid)
    for conv in decoder.convs:
        y = conv(x)[(..., *(slice(0, side) for side in grid))]
        y = F.gelu(F.layer_norm(y.movedim(1, -1), y.shape[1:2], eps=1e-5)).movedim(-1, 1)
        x = x + y if decoder.residual and x.shape == y.shape else y
    return decoder.projection(x.flatten(2).mT)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("kernel", [3, 4])
@pytest.mark.parametrize(("grid", "dims"), [((12,), 1), ((3, 4), 2)])
@pytest.mark.parametrize("dim", [8, 12])
def test_decoder_is_fairseqs(
    grid: tuple[int, ...], dims: int, kernel: int, residual: bool, dim: int
) -> None:
    decoder = ConvDecoder(8, dim, kernel, 3, 4, dims, residual, projection_layers=2)
    mask, noise = some_mask(2, 12, 5), torch.randn(2, 12, 8)
    assert mask.kept is not None
    x = torch.randn(2, 12, 8)
    full = torch.where(mask.masked[..., None], noise, x)
    expected = decoded(decoder, full, grid)[mask.masked]
    torch.testing.assert_close(
        decoder(gather_rows(x, mask.kept), mask, grid, noise), expected, atol=1e-5, rtol=1e-4
    )


def test_fill_puts_every_visible_token_at_its_place_and_noise_at_the_gaps() -> None:
    decoder, mask = ConvDecoder(8, 8, 3, 1, 1, noise_std=0.01), some_mask(3, 200, 90)
    assert mask.kept is not None
    x = torch.randn(3, 200, 8)
    full = decoder.fill(gather_rows(x, mask.kept), mask)
    assert torch.equal(full[~mask.masked], x[~mask.masked])
    gaps = full[mask.masked]
    assert float(gaps.std()) == pytest.approx(0.01, rel=0.05) and abs(float(gaps.mean())) < 1e-3
    noise = torch.randn(3, 200, 8)
    assert torch.equal(
        decoder.fill(gather_rows(x, mask.kept), mask, noise)[mask.masked], noise[mask.masked]
    )


def test_fill_leaves_a_whole_sequence_as_it_is() -> None:
    """data2vec 1's view over a decoder: every position was encoded."""
    x = torch.randn(2, 6, 8)
    assert torch.equal(ConvDecoder(8, 8, 3, 1, 1).fill(x, some_mask(2, 6, 3)), x)


def test_input_dropout_in_training_leaves_the_noise_alone() -> None:
    decoder, mask = ConvDecoder(8, 8, 3, 1, 1, input_dropout=0.5), some_mask(2, 40, 20)
    visible, noise = torch.ones(2, 20, 8), torch.full((2, 40, 8), 7.0)
    full = decoder.train().fill(visible, mask, noise)
    assert (full[mask.masked] == 7).all()
    assert set(full[~mask.masked].unique().tolist()) == {0.0, 2.0}
    assert (visible == 1).all()  # the reference drops in place
    assert (decoder.eval().fill(visible, mask, noise)[~mask.masked] == 1).all()


@pytest.mark.parametrize("layers", [1, 2])
def test_head_projects_the_masked_rows(layers: int) -> None:
    head, mask, x = Head(6, layers, 1.5), some_mask(3, 7, 2), torch.randn(3, 7, 6)
    torch.testing.assert_close(head(x, mask, (7,)), head.projection(x)[mask.masked])
    with pytest.raises(AssertionError, match="replaces"):
        head(x[:, :5], mask, (7,))


def test_projections() -> None:
    two = projection(6, 4, 2, 1.5, "bert")
    assert [type(m) for m in two] == [nn.Linear, nn.GELU, nn.Linear]
    assert [(m.in_features, m.out_features) for m in (two[0], two[2])] == [(6, 9), (9, 4)]  # type: ignore[union-attr]
    assert not two[0].bias.any() and projection(6, 4, 1, 2.0, "default")[0].bias.any()  # type: ignore[union-attr, operator]
    with pytest.raises(AssertionError, match="1 or 2"):
        projection(6, 4, 3, 2.0, "default")
