"""When bad data stop a run, against the sets of bad items that the data are made of."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from d2v_pretrain.training.callbacks.bad_data import RECENT, SURE, BadData

PASSES = 5


def watching() -> BadData:
    watch = BadData()
    watch.begin(PASSES)
    return watch


def steps(size: int, bad: set[int], batch: int, draw: random.Random) -> Iterator[list[int]]:
    """Items and bad items of each pass, modulo ``PASSES``, in each step of an endless shuffled
    run."""
    step, number = [0, 0] * PASSES, 0
    while True:
        for item in draw.sample(range(size), size):
            step[2 * (number % PASSES)] += 1
            step[2 * (number % PASSES) + 1] += item in bad
            if sum(step[::2]) == batch:
                yield step
                step = [0, 0] * PASSES
        number += 1


def stops_after(
    watch: BadData, size: int, bad: set[int], batch: int, share: float, most: int, seed: int = 0
) -> int | None:
    """Items that were read when the run stopped; None if it did not within ``most`` steps."""
    for n, step in enumerate(steps(size, bad, batch, random.Random(seed)), 1):
        if watch.count(step, size, share, False):
            return n * batch
        if n == most:
            return None
    raise AssertionError


@pytest.mark.parametrize("batch", [1, 3, 4, 7, 16, 29])
@pytest.mark.parametrize("size", [10, 16, 23, 150])
def test_the_share_of_a_pass_is_exact(size: int, batch: int) -> None:
    """As many bad items as are allowed never stop a run, and one more does within two passes."""
    allowed = int(0.1 * size)
    for seed in range(3):
        bad = set(random.Random(seed).sample(range(size), allowed))
        if len(bad) < SURE:
            assert stops_after(watching(), size, bad, batch, 0.1, 20 * size, seed) is None
        more = bad | {next(i for i in range(size) if i not in bad)}
        after = stops_after(watching(), size, more, batch, 0.1, 20 * size, seed)
        assert after is not None and after <= 2 * size + batch


def test_an_isolated_bad_item_stops_nothing() -> None:
    assert stops_after(watching(), 11, {5}, 1, 0.1, 5000) is None
    assert stops_after(watching(), 5, {3}, 2, 0.1, 5000) is None
    assert stops_after(watching(), 11, {5}, 1, 0.0, 5000) is not None, "nothing is allowed"


def test_large_data_are_judged_long_before_a_pass_ends() -> None:
    size = 30 * RECENT
    third = {i for i in range(size) if i % 3 == 0}
    after = stops_after(watching(), size, third, 250, 0.1, 1000)
    assert after is not None and after < RECENT
    tenth = {i for i in range(size) if i % 10 == 0}
    assert stops_after(watching(), size, tenth, 250, 0.1, 1000) is None


def test_steps_without_a_usable_item() -> None:
    watch = watching()
    assert not watch.count([3, 3, 0, 0, *[0] * 6], 10_000, 1.0, False), "three may be chance"
    assert not watch.count([1, 0, 2, 2, *[0] * 6], 10_000, 1.0, False)
    assert not watch.count([4, 4, 0, 0, *[0] * 6], 10_000, 1.0, False)
    assert "none of the last 8 items" in watch.count([2, 2, 2, 2, *[0] * 6], 10_000, 1.0, False)
    assert "none" in watching().count([4, 4, 0, 0, *[0] * 6], 10_000, 1.0, True), (
        "a run of bad items alone"
    )


def test_counts_survive_a_restart() -> None:
    """A run that stops and goes on at any step stops where the other one does."""
    bad, size = set(range(3)), 20
    for seed in range(5):
        whole = stops_after(watching(), size, bad, 2, 0.1, 1000, seed)
        watch = watching()
        for n, step in enumerate(steps(size, bad, 2, random.Random(seed)), 1):
            found = watch.count(step, size, 0.1, False)
            assert bool(found) == (n * 2 == whole)
            if found:
                break
            again = watching()
            again.load_state_dict(watch.state_dict())
            watch = again
