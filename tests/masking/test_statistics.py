"""Our masks and the reference's (tests/fixtures/goldens/mask_stats.json) as two samples of one
distribution.

Keys are fixed, so a test that passes once always passes. A wrong span length, share, border rule or
order of steps is off by tens of standard errors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from d2v_pretrain.masking import BlockMask, MaskPolicy, RectangleMask, SpanMask

REFERENCE = json.loads(
    (Path(__file__).parent.parent / "fixtures" / "goldens" / "mask_stats.json").read_text()
)
POLICIES: dict[str, tuple[MaskPolicy, tuple[int, ...]]] = {
    "audio_v1_B1_T100": (SpanMask(0.65, 10), (100,)),
    "audio_v1_B1_T499": (SpanMask(0.65, 10), (499,)),
    "audio_v1_B8_T499": (SpanMask(0.65, 10), (499,)),
    "vision_v1_14x14_120": (RectangleMask(120), (14, 14)),
    "text_v1_prob15_len1_chosen": (SpanMask(0.15, 1, fit=False, equal=False), (512,)),
    "text_v1_prob15_len1_shown_as_mask": (
        SpanMask(0.15, 1, False, False, keep_prob=0.1, random_prob=0.1),
        (512,),
    ),
    "audio_v2_block1d_B8_T499": (BlockMask(0.5, 5, 0.05), (499,)),
    "image_v2_base_16x196": (BlockMask(0.8, 3, 0.07, inverse=True), (14, 14)),
}
SEQUENCES = [name for name, (_, grid) in POLICIES.items() if len(grid) == 1]
_drawn: dict[str, Tensor] = {}


def draw(name: str) -> Tensor:
    """(draws, rows of a draw, T) masks, as many as the reference's; drawn once."""
    if name not in _drawn:
        policy, grid = POLICIES[name]
        entry = REFERENCE[name]
        rows = entry["rows"] // entry["draws"]
        if rows == 1 and not (isinstance(policy, SpanMask) and policy.equal):
            masks = [
                policy(1, torch.arange(entry["draws"]), 1, grid).masked
            ]  # rows do not know each other
        else:
            masks = [
                policy(1, torch.arange(rows) + rows * i, 1, grid).masked
                for i in range(entry["draws"])
            ]
        _drawn[name] = torch.cat(masks).view(entry["draws"], rows, -1)
    return _drawn[name]


def lengths_of_runs(rows: Tensor) -> tuple[list[int], list[int]]:
    """Lengths of the masked runs, and of the gaps between two of them, of (R, T)."""
    spans: list[int] = []
    gaps: list[int] = []
    for row in rows.int():
        values, counts = torch.unique_consecutive(row, return_counts=True)
        runs = list(zip(values.tolist(), counts.tolist(), strict=True))
        spans += [n for value, n in runs if value]
        gaps += [n for value, n in runs[1:-1] if not value]
    return spans, gaps


def excess(ours: dict[int, int], theirs: dict[int, int]) -> float:
    """Chi-square of two histograms of samples of different size, in its standard deviations above
    its mean."""
    bins = [k for k in {*ours, *theirs} if ours.get(k, 0) + theirs.get(k, 0) >= 40]
    a, b = (torch.tensor([float(h.get(k, 0)) for k in bins]) for h in (ours, theirs))
    ratio = (b.sum() / a.sum()).sqrt()
    chi_square, freedom = (
        float(((a * ratio - b / ratio).square() / (a + b)).sum()),
        max(1, len(bins) - 1),
    )
    return (chi_square - freedom) / (2 * freedom) ** 0.5


def histogram(values: list[int]) -> dict[int, int]:
    counts = torch.bincount(torch.tensor(values).clamp(max=64)).tolist()
    return {i: n for i, n in enumerate(counts) if n}


@pytest.mark.parametrize("name", POLICIES)
def test_number_of_masked_tokens(name: str) -> None:
    entry, counts = REFERENCE[name], draw(name).sum(2).double()
    assert int((counts.amax(1) - counts.amin(1)).max()) == entry["rows_within_draw_max_difference"]
    n, deviation = entry["draws"], entry["masked_per_row_std"]
    assert (
        abs(float(counts.mean()) - entry["masked_per_row_mean"]) <= 4 * deviation * (2 / n) ** 0.5
    )
    assert abs(float(counts.std(correction=0)) - deviation) <= 5 * deviation * n**-0.5
    for extreme, key in ((counts.min(), "min"), (counts.max(), "max")):
        assert abs(float(extreme) - entry[f"masked_per_row_{key}"]) <= 2.5 * deviation


@pytest.mark.parametrize(
    "name", [name for name in POLICIES if REFERENCE[name]["masked_per_row_hist"]]
)
def test_histogram_of_the_number(name: str) -> None:
    """Of one row a draw: the others have the same number wherever the policy makes rows equal."""
    entry, values = REFERENCE[name], draw(name)[:, 0].sum(1).tolist()
    theirs = {
        int(k): v * entry["draws"] // entry["rows"] for k, v in entry["masked_per_row_hist"].items()
    }
    assert excess({k: values.count(k) for k in set(values)}, theirs) < 4


@pytest.mark.parametrize("name", POLICIES)
def test_how_often_each_position_is_masked(name: str) -> None:
    """Edges are masked less than the middle, in the reference's proportion."""
    masked, theirs = (
        draw(name).flatten(0, 1).double(),
        torch.tensor(REFERENCE[name]["position_frequency"]).double(),
    )
    ours, n = masked.mean(0), len(masked)
    pooled = ((ours + theirs) / 2).clamp(1e-4, 1 - 1e-4)
    z = (ours - theirs) / (pooled * (1 - pooled) * 2 / n).sqrt()
    rounding = 1.05  # the recorded frequencies have four digits
    assert z.abs().max() < 4.5 * rounding
    assert (
        z.square().mean().sqrt() < 1.4 * rounding
    )  # neighbours are masked together: few independent terms


@pytest.mark.parametrize("size", [30, 100])
def test_how_often_each_position_is_masked_by_combinatorics(size: int) -> None:
    """Position i escapes if none of n starts, drawn from T - 10 without replacement, is among the k
    that reach it."""
    masked = (
        SpanMask(0.65, 10, equal=False)(3, torch.arange(20_000), 1, (size,)).masked.double().mean(0)
    )
    starts, spans = size - 10, 0.65 * size / 10
    few, share = int(spans), spans % 1
    for i in range(size):
        k = len([s for s in range(starts) if s <= i < s + 10])
        escape = [math.comb(starts - k, n) / math.comb(starts, n) for n in (few, few + 1)]
        expected = 1 - (1 - share) * escape[0] - share * escape[1]
        assert (
            abs(float(masked[i]) - expected) <= 4.5 * (expected * (1 - expected) / 20_000) ** 0.5
        ), i


@pytest.mark.parametrize("name", SEQUENCES)
def test_lengths_of_spans_and_of_the_gaps_between(name: str) -> None:
    """Runs of one row depend on one another, which widens their spread a little."""
    spans, gaps = lengths_of_runs(draw(name).flatten(0, 1)[:2000])
    for values, key in ((spans, "span_hist"), (gaps, "gap_hist")):
        theirs = {int(k): v for k, v in REFERENCE[name][key].items()}
        assert excess(histogram(values), theirs) < 4, key


@pytest.mark.parametrize("name", [name for name in POLICIES if name not in SEQUENCES])
def test_neighbouring_patches_are_equal_as_often(name: str) -> None:
    grid = draw(name).flatten(0, 1).view(-1, 14, 14)
    equal = (grid[:, 1:] == grid[:, :-1]).double().mean((1, 2)) + (
        grid[..., 1:] == grid[..., :-1]
    ).double().mean((1, 2))
    equal = equal / 2
    error = float(equal.std()) * (2 / len(grid)) ** 0.5
    assert abs(float(equal.mean()) - REFERENCE[name]["equal_neighbour_fraction_mean"]) < 4.5 * error


def test_published_shares() -> None:
    """What the papers quote: 49 % of a single row, 44 to 45 % of equal rows, 15 %, exactly a half,
    80 %."""
    shares = {name: f"{float(draw(name).double().mean()):.2f}" for name in POLICIES}
    assert shares["audio_v1_B1_T499"] == "0.49" and shares["audio_v1_B8_T499"] == "0.45"
    assert (
        shares["text_v1_prob15_len1_chosen"] == "0.15"
        and shares["text_v1_prob15_len1_shown_as_mask"] == "0.12"
    )
    assert shares["audio_v2_block1d_B8_T499"] == "0.50" and shares["image_v2_base_16x196"] == "0.80"
