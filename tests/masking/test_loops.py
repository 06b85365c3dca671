"""Policies against slow loops over Python's own random numbers, where the recorded statistics do
not reach.

Two samples of one distribution each, compared by how often every position and every pair of
neighbours is masked."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from d2v_pretrain.masking import BlockMask, MaskPolicy, RectangleMask, SpanMask, TokenMask

DRAWS = 3000
Loop = Callable[[random.Random], set[int]]


def spans(rng: random.Random, size: int, prob: float, length: int) -> set[int]:
    """Text: starts anywhere without replacement, cut at the end."""
    number = int(prob * size / length + rng.random())
    return {
        i
        for start in rng.sample(range(size), number)
        for i in range(start, start + length)
        if i < size
    }


def exactly(rng: random.Random, chosen: set[int], everything: set[int], goal: int) -> set[int]:
    """Drop or add single tokens at random until the number is right."""
    if len(chosen) > goal:
        return chosen - set(rng.sample(sorted(chosen), len(chosen) - goal))
    return chosen | set(rng.sample(sorted(everything - chosen), goal - len(chosen)))


def blocks_1d(rng: random.Random, size: int, share: float, adjust: float, length: int) -> set[int]:
    chosen = set()
    for _ in range(int(size * ((share + adjust) / length))):
        centre = rng.randrange(size)
        for offset in range(-(length // 2), length - length // 2):
            chosen.add(min(max(centre + offset, 0), size - 1))
    return exactly(rng, chosen, set(range(size)), int(size * share))


def blocks_2d(
    rng: random.Random, rows: int, columns: int, share: float, adjust: float, length: int
) -> set[int]:
    size, chosen, reach = rows * columns, set(), range(-(length // 2), length - length // 2)
    for _ in range(int(size * ((share + adjust) / length**2))):
        centre = rng.randrange(size)
        for down in reach:
            for right in reach:
                row = min(max(centre // columns + down, 0), rows - 1)
                column = min(max(centre % columns + right, 0), columns - 1)
                chosen.add(row * columns + column)
    return exactly(rng, chosen, set(range(size)), int(size * share))


def rectangles(rng: random.Random, rows: int, columns: int, count: int, smallest: int) -> set[int]:
    """BEiT's generator."""
    masked: set[int] = set()
    while len(masked) < count:
        for _ in range(10):
            area = rng.uniform(smallest, count - len(masked))
            aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if width >= columns or height >= rows:
                continue
            top, left = rng.randint(0, rows - height), rng.randint(0, columns - width)
            inside = {
                r * columns + c for r in range(top, top + height) for c in range(left, left + width)
            }
            if 0 < len(inside - masked) <= count - len(masked):
                masked |= inside
                break
        else:
            return masked
    return masked


def tokens(rng: random.Random, size: int, prob: float) -> set[int]:
    return set(range(size)) - set(rng.sample(range(size), int(size * (1 - prob))))


def inverse(size: int, loop: Loop) -> Loop:
    return lambda rng: set(range(size)) - loop(rng)


CASES: dict[str, tuple[MaskPolicy, tuple[int, ...], Loop]] = {
    "text spans": (SpanMask(0.35, 4, False, False), (50,), lambda r: spans(r, 50, 0.35, 4)),
    "blocks": (BlockMask(0.55, 5, 0.1), (60,), lambda r: blocks_1d(r, 60, 0.55, 0.1, 5)),
    "even blocks": (BlockMask(0.4, 4, 0.0), (41,), lambda r: blocks_1d(r, 41, 0.4, 0.0, 4)),
    "squares": (BlockMask(0.4, 2, 0.1), (7, 7), lambda r: blocks_2d(r, 7, 7, 0.4, 0.1, 2)),
    "oblong": (BlockMask(0.4, 3, 0.1), (5, 9), lambda r: blocks_2d(r, 5, 9, 0.4, 0.1, 3)),
    "inverse squares": (
        BlockMask(0.75, 3, 0.1, inverse=True),
        (8, 8),
        inverse(64, lambda r: blocks_2d(r, 8, 8, 0.25, 0.1, 3)),
    ),
    "rectangles": (RectangleMask(30, 4), (6, 9), lambda r: rectangles(r, 6, 9, 30, 4)),
    "tokens": (TokenMask(0.48), (33,), lambda r: tokens(r, 33, 0.48)),
}


def looped(loop: Loop, size: int) -> Tensor:
    rng, masked = random.Random(0), torch.zeros(DRAWS, size, dtype=torch.bool)
    for row in masked:
        row[list(loop(rng))] = True
    return masked


def agree(ours: Tensor, theirs: Tensor) -> bool:
    """Frequencies (R, F) of two samples, within 4.5 standard errors everywhere and 1.8 on the whole
    (neighbours are masked together, so few terms of the whole are independent)."""
    a, b = ours.double().mean(0), theirs.double().mean(0)
    pooled = ((a + b) / 2).clamp(0.5 / DRAWS, 1 - 0.5 / DRAWS)
    z = (a - b) / (pooled * (1 - pooled) * 2 / DRAWS).sqrt()
    return bool(z.abs().max() < 4.5) and bool(z.square().mean().sqrt() < 1.8)


@pytest.mark.parametrize("name", CASES)
def test_policy_and_loop_are_one_distribution(name: str) -> None:
    policy, grid, loop = CASES[name]
    ours, theirs = policy(5, torch.arange(DRAWS), 1, grid).masked, looped(loop, math.prod(grid))
    assert agree(ours, theirs)
    for distance in (1, 2, grid[-1]):
        if distance < ours.shape[1]:
            assert agree(
                ours[:, distance:] & ours[:, :-distance],
                theirs[:, distance:] & theirs[:, :-distance],
            )
    a, b = ours.sum(1).double(), theirs.sum(1).double()
    assert abs(float(a.mean() - b.mean())) <= 4.5 * float(b.std()) * (2 / DRAWS) ** 0.5
    assert abs(float(a.std() - b.std())) <= 0.1 * float(b.std())


def test_the_comparison_sees_an_offset_by_one_and_a_block_too_short() -> None:
    """The test's own test."""
    right, short = (looped(lambda r, n=n: blocks_1d(r, 60, 0.55, 0.1, n), 60) for n in (5, 4))
    assert not agree(right, right.roll(1, 1))
    assert not agree(right[:, 1:] & right[:, :-1], short[:, 1:] & short[:, :-1])
