"""What only the small recipes use: the edge stem, text without learned positions."""

from __future__ import annotations

import torch

from d2v_pretrain.models.stems import EdgeStem, TextStem
from d2v_pretrain.types import Batch, Mask


def images(pixels: torch.Tensor) -> Batch:
    return Batch(pixels, torch.arange(len(pixels)))


def test_edge_stem_is_blind_to_flat_colour_and_to_the_sign_of_contrast() -> None:
    torch.manual_seed(0)
    stem = EdgeStem(24, patch=4, filters=16, kernel=6)
    assert stem.filters.weight.sum((2, 3)).abs().max() < 1e-5
    picture = torch.randn(2, 3, 32, 32)
    moved = stem(images(picture + 5.0)).x.unflatten(1, (8, 8))[:, 1:-1, 1:-1]
    here = stem(images(picture)).x.unflatten(1, (8, 8))[:, 1:-1, 1:-1]  # borders see the padding
    torch.testing.assert_close(here, moved, atol=1e-4, rtol=0)
    # Filters come in pairs of opposite sign: their rectified sum is the same for the negative of an
    # image.
    rectified = torch.nn.functional.gelu(stem.filters(picture)).unflatten(1, (2, 8)).sum(1)
    negative = torch.nn.functional.gelu(stem.filters(-picture)).unflatten(1, (2, 8)).sum(1)
    torch.testing.assert_close(rectified, negative, atol=1e-5, rtol=0)


def test_edge_stem_replaces_masked_patches() -> None:
    stem = EdgeStem(24, patch=4, filters=16, kernel=6, masked=True)
    batch = images(torch.randn(2, 3, 16, 16))
    masked = torch.rand(2, 16) < 0.5
    seen = stem.replaced(batch, stem(batch), Mask.of(masked))
    assert stem.mask_vector is not None
    assert torch.equal(seen.x[masked], stem.mask_vector.expand(int(masked.sum()), -1))
    assert torch.equal(seen.x[~masked], stem(batch).x[~masked])
    assert stem(batch).grid == (4, 4)


def test_text_without_learned_positions_does_not_know_the_order() -> None:
    stem = TextStem(16, vocabulary=20, max_tokens=None, dropout=0.0)
    ids = torch.tensor([[0, 5, 6, 7, 2]])
    forward, backward = (stem(Batch(x, torch.arange(1))).x for x in (ids, ids.flip(1)))
    assert torch.equal(forward, backward.flip(1))
