"""Schedules at the points that the published runs pass (ALGORITHM 0.7), at their ends and
beyond."""

from __future__ import annotations

import math

import pytest

from d2v_pretrain.schedules import Constant, Cosine, Linear, Schedule, TriStage, WarmupCosine


@pytest.mark.parametrize(
    ("start", "end", "steps", "points"),
    [
        (
            0.999,
            0.9999,
            30_000,
            {1: 0.99900003, 100: 0.999003, 15_000: 0.99945, 30_000: 0.9999, 10**6: 0.9999},
        ),
        (
            0.999,
            0.99999,
            75_000,
            {1: 0.9990000132, 1_000: 0.9990132, 37_500: 0.999495, 75_000: 0.99999},
        ),
        (0.9998, 0.99999, 100_000, {1_000: 0.9998019, 50_000: 0.999895, 100_000: 0.99999}),
    ],
    ids=["data2vec 1 audio", "data2vec 2 audio", "data2vec 2 image"],
)
def test_teacher_decay(start: float, end: float, steps: int, points: dict[int, float]) -> None:
    for step, value in points.items():
        assert Linear(start, end, steps)(step) == pytest.approx(value, abs=1e-12)


def test_a_decay_of_one_freezes_from_the_end_on() -> None:
    decay = Linear(0.9997, 1.0, 300_000)
    assert decay(299_999) < 1 and decay(300_000) == decay(600_000) == 1


def test_a_decay_over_no_steps_is_its_end() -> None:
    assert Linear(0.9, 0.99, 0)(0) == 0.99


def test_tri_stage_of_data2vec_1_audio() -> None:
    rate = TriStage(5e-4, 400_000, (0.03, 0.9, 0.07))
    points = {
        0: 5e-6,
        6_000: 2.525e-4,
        12_000: 5e-4,
        200_000: 5e-4,
        371_999: 5e-4,
        386_000: 5e-5,
        400_000: 5e-6,
    }
    for step, value in points.items():
        assert rate(step) == pytest.approx(value, rel=1e-9)
    assert rate(500_000) == rate(400_000)


def test_tri_stage_decays_by_a_constant_factor() -> None:
    rate = TriStage(1.0, 1_000, (0.1, 0.4, 0.5), final_scale=0.05)
    ratios = [rate(step + 1) / rate(step) for step in range(500, 1_000)]
    assert all(ratio == pytest.approx(math.exp(math.log(0.05) / 500), rel=1e-9) for ratio in ratios)


def test_cosine_of_data2vec_2_audio() -> None:
    rate = WarmupCosine(7.5e-4, 8_000, 400_000)
    points = {
        0: 0,
        1: 9.375e-8,
        4_000: 3.75e-4,
        8_000: 7.5e-4,
        100_000: 6.52604e-4,
        204_000: 3.75e-4,
        400_000: 0,
    }
    for step, value in points.items():
        assert rate(step) == pytest.approx(value, rel=1e-5, abs=1e-15)
    assert rate(400_001) == rate(800_000) == 0


def test_cosine_of_data2vec_1_vision() -> None:
    """BEiT's formula after the warm-up. Its warm-up is a linspace that reaches the peak one step
    before ours."""
    peak, final, initial, warmup, steps = 2e-3, 1e-5, 1e-6, 7, 50
    rate = WarmupCosine(peak, warmup, steps, initial, final)
    for step in range(warmup, steps):
        expected = final + 0.5 * (peak - final) * (
            1 + math.cos(math.pi * (step - warmup) / (steps - warmup))
        )
        assert rate(step) == pytest.approx(expected, rel=1e-12)
    assert rate(0) == initial and rate(steps) == rate(99) == final


@pytest.mark.parametrize(
    "rate",
    [WarmupCosine(1.0, 0, 10), WarmupCosine(1.0, 10, 10), TriStage(1.0, 10, (0.0, 0.5, 0.5))],
)
def test_stages_may_be_empty(rate: Schedule) -> None:
    values = [rate(step) for step in range(15)]
    assert all(0 <= value <= 1 for value in values)
    assert max(values[:11]) == pytest.approx(1.0)


def test_cosine_decay_rises_from_start_to_end_through_the_middle() -> None:
    decay = Cosine(0.99, 1.0, 100)
    assert (
        decay(0) == pytest.approx(0.99)
        and decay(50) == pytest.approx(0.995)
        and decay(100) == decay(999) == 1.0
    )
    values = [decay(step) for step in range(101)]
    assert values == sorted(values)


def test_constant() -> None:
    assert {Constant(0.9998)(step) for step in (0, 1, 10**9)} == {0.9998}
