"""The teacher's own view of a batch."""

from __future__ import annotations

import torch

from d2v_pretrain.objective.view import MaskedTokensOnly, Recolour
from d2v_pretrain.types import Batch, Mask


def test_recolour_permutes_and_scales_whole_channels() -> None:
    torch.manual_seed(3)
    picture = torch.randn(64, 3, 5, 5)
    batch = Batch(picture, torch.arange(64))
    seen = Recolour()(batch, Mask.of(torch.zeros(64, 25, dtype=torch.bool))).inputs
    signs, sources = [], []
    for before, after in zip(picture, seen, strict=True):
        for channel in after:
            gains = (channel / before).flatten(1)  # against each of the three channels
            source = int((gains.std(1) < 1e-3).float().argmax())
            gain = float(gains[source].mean())
            assert gains[source].std() < 1e-3 and 0.5 - 1e-3 <= abs(gain) <= 1.5 + 1e-3
            signs.append(gain > 0)
            sources.append(source)
    assert 0.3 < sum(signs) / len(signs) < 0.7  # inverted half of the time
    assert torch.equal(
        torch.tensor(sources).view(64, 3).sort(1).values, torch.arange(3).expand(64, 3)
    )
    assert torch.equal(batch.inputs, picture)


def test_masked_tokens_only_shows_the_teacher_what_the_student_does_not_see() -> None:
    ids = torch.tensor([[0, 5, 6, 7, 2], [0, 8, 9, 4, 2]])
    masked = torch.tensor([[0, 1, 0, 1, 0], [1, 0, 0, 0, 0]]).bool()
    seen = MaskedTokensOnly(pad=1)(Batch(ids, torch.arange(2)), Mask.of(masked))
    assert seen.inputs.tolist() == [[1, 5, 1, 7, 1], [0, 1, 1, 1, 1]]
    assert seen.lengths is not None  # so that the stem looks for padding
