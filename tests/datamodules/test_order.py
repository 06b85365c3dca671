"""The order of the data against brute force: exactly once, the same rest from any cursor, the same
for any world."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from d2v_pretrain.errors import ConfigError
from datamodules.order import EpochOrder, MicroBatch, StepSampler, readers_for

LENGTHS = np.random.default_rng(0).integers(5, 100, 103)
PLANS = {
    "plain": EpochOrder(103, seed=1, micro_batch=8),
    "buckets": EpochOrder(103, seed=1, micro_batch=8, lengths=LENGTHS),
    "tokens": EpochOrder(103, seed=1, micro_batch=8, lengths=LENGTHS, max_tokens=300),
    "equal": EpochOrder(103, seed=1, micro_batch=8, lengths=np.full(103, 7), max_tokens=300),
    "one": EpochOrder(1, seed=1, micro_batch=8),
}
SIZES = np.random.default_rng(1).integers(0, 30, 40)  # shards, one of them empty
SIZES[3] = 0
SHARD_LENGTHS = np.random.default_rng(2).integers(5, 100, SIZES.sum())
SHARDED = EpochOrder(
    SIZES, seed=1, micro_batch=4, lengths=SHARD_LENGTHS, max_tokens=300, buckets=3, window=2
)


def take(n: int, stream: StepSampler) -> list[tuple]:
    return [(batch.ids.tolist(), batch.epoch, batch.cursor) for batch in islice(stream, n)]


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_each_sample_is_trained_exactly_once_an_epoch(name: str, epoch: int) -> None:
    plan = PLANS[name]
    batches = plan.window(epoch)
    seen = [i for batch in batches for i in batch.tolist()]
    assert sorted(seen) == list(range(plan.size))
    assert all(1 <= len(batch) <= plan.micro_batch for batch in batches)


def test_without_lengths_only_the_last_micro_batch_is_smaller() -> None:
    assert [len(batch) for batch in PLANS["plain"].window(3)] == [8] * 12 + [7]


def test_token_budget_holds_and_no_batch_could_have_taken_the_next_sample() -> None:
    plan = EpochOrder(103, seed=1, micro_batch=8, lengths=LENGTHS, max_tokens=300, buckets=1)
    order = np.random.default_rng(5).permutation(103)
    batches = plan.pack(order)
    assert np.concatenate(batches).tolist() == order.tolist()
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        assert LENGTHS[batch].max() * len(batch) <= 300
        if following is not None and len(batch) < 8:
            assert max(LENGTHS[batch].max(), LENGTHS[following[0]]) * (len(batch) + 1) > 300


def test_buckets_put_like_with_like() -> None:
    def waste(plan: EpochOrder) -> float:
        padded = sum(LENGTHS[b].max() * len(b) for b in plan.window(0))
        return 1 - LENGTHS.sum() / padded

    assert waste(PLANS["buckets"]) < 0.5 * waste(PLANS["plain"])


def test_order_depends_on_seed_and_epoch() -> None:
    orders = {
        str(take(5, StepSampler(EpochOrder(103, seed, 8), 1, cursor=(epoch, 0))))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


@pytest.mark.parametrize("name", PLANS)
def test_a_stream_from_any_cursor_is_the_rest_of_the_stream(name: str) -> None:
    whole = take(70, StepSampler(PLANS[name], micro_batches_per_step=3))
    for n in range(69):
        assert (
            take(70 - n - 1, StepSampler(PLANS[name], micro_batches_per_step=3, cursor=whole[n][2]))
            == whole[n + 1 :]
        )


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_every_world_size_trains_the_same_steps(name: str, world: int) -> None:
    plan, slots, steps = PLANS[name], 6, 12
    whole = take(slots * steps, StepSampler(plan, slots))
    part = slots // world
    ranks = [take(part * steps, StepSampler(plan, slots, rank, world)) for rank in range(world)]
    for step in range(steps):
        mine = [ranks[r][step * part + i] for r in range(world) for i in range(part)]
        expected = whole[step * slots : (step + 1) * slots]
        assert [m[:2] for m in mine] == [e[:2] for e in expected]
        ends = {ranks[r][step * part + part - 1][2] for r in range(world)}
        assert ends == {expected[-1][2]}, "all ranks carry the cursor of the step's end"


def test_a_run_moved_between_world_sizes_trains_what_one_rank_would_have() -> None:
    plan, cursor, seen = PLANS["tokens"], (0, 0), []
    for world, steps in [(1, 2), (3, 5), (2, 4), (6, 3), (1, 6)]:
        part = 6 // world
        ranks = [
            list(islice(StepSampler(plan, 6, r, world, cursor), part * steps)) for r in range(world)
        ]
        for step in range(steps):
            seen += [
                s.ids.tolist() for rank in ranks for s in rank[step * part : (step + 1) * part]
            ]
        cursor = ranks[0][-1].cursor
    assert seen == [ids for ids, _, _ in take(120, StepSampler(plan, 6))]


def test_epochs_count_up_and_the_boundary_may_fall_into_a_step() -> None:
    slots: list[MicroBatch] = list(
        islice(StepSampler(PLANS["plain"], micro_batches_per_step=6), 30)
    )
    assert [s.epoch for s in slots] == [0] * 13 + [1] * 13 + [2] * 4
    assert slots[12].cursor == (1, 0) and slots[11].cursor == (0, 12)


def per_epoch(slots: list[MicroBatch]) -> dict[int, list[int]]:
    seen: dict[int, list[int]] = {}
    for batch in slots:
        seen.setdefault(batch.epoch, []).extend(batch.ids.tolist())
    return seen


def test_windows_cover_each_epoch_exactly_once_and_differ_between_epochs() -> None:
    assert SHARDED.windows == 20
    for epoch in range(3):
        windows = range(20 * epoch, 20 * epoch + 20)
        assert sorted(s for w in windows for s in SHARDED.shards(w).tolist()) == list(range(40))
        ids = [i for w in windows for batch in SHARDED.window(w) for i in batch.tolist()]
        assert sorted(ids) == list(range(SHARDED.size))
        shard_of = np.repeat(np.arange(40), SIZES)
        for w in windows:
            of_window = {shard_of[i] for batch in SHARDED.window(w) for i in batch.tolist()}
            assert of_window == {s for s in SHARDED.shards(w).tolist() if SIZES[s]}
    assert SHARDED.shards(0).tolist() != SHARDED.shards(20).tolist()


@pytest.mark.parametrize("readers", [1, 2, 4, 8])
def test_lanes_of_uneven_shards_stopped_and_gone_on_with_any_world(readers: int) -> None:
    """RELIABILITY.md's property: 400 steps with restarts on other world sizes are those of one
    uninterrupted rank."""
    draw, slots, steps = np.random.default_rng(readers), 8, 400
    whole: list[MicroBatch] = list(
        islice(StepSampler(SHARDED, slots, readers=readers), slots * steps)
    )
    seen: list[MicroBatch] = []
    cursor: tuple[int, ...] = ()
    while len(seen) < slots * steps:
        world, count = int(draw.choice([1, 2, 4, 8])), int(draw.integers(1, 90))
        part = slots // world
        ranks = [
            list(islice(StepSampler(SHARDED, slots, r, world, cursor, readers), part * count))
            for r in range(world)
        ]
        seen += [s for t in range(count) for rank in ranks for s in rank[t * part : (t + 1) * part]]
        assert len({rank[-1].cursor for rank in ranks}) == 1
        cursor = ranks[0][-1].cursor
    for ours, theirs in zip(seen, whole, strict=False):
        assert ours.ids.tolist() == theirs.ids.tolist() and ours.epoch == theirs.epoch
    counts = per_epoch(whole)
    complete = [e for e, ids in counts.items() if len(ids) == SHARDED.size]
    assert len(complete) >= 6 and all(
        sorted(counts[e]) == list(range(SHARDED.size)) for e in complete
    )


def test_shards_are_announced_before_they_are_read_and_only_to_the_rank_that_reads_them() -> None:
    shard_of = np.repeat(np.arange(40), SIZES)
    for rank in range(4):
        told: set[int] = set()
        stream = StepSampler(
            SHARDED,
            4,
            rank,
            4,
            readers=2,
            prefetch=lambda shards, told=told: told.update(shards.tolist()),
        )
        for batch in islice(stream, 20):
            assert {int(shard_of[i]) for i in batch.ids} <= told
        assert len(told) < 20


def test_number_of_lanes() -> None:
    assert [
        readers_for(EpochOrder(np.full(n, 5), 0, 4, window=1), 12)
        for n in (1, 15, 16, 95, 96, 1000)
    ] == [
        1,
        1,
        2,
        6,
        12,
        12,
    ]


def test_wrong_settings_are_told() -> None:
    with pytest.raises(ConfigError, match=r"trainer.devices=4 .* 6 micro-batches .*1, 2, 3, 6"):
        StepSampler(PLANS["plain"], micro_batches_per_step=6, world=4)
    with pytest.raises(ConfigError, match="max_tokens=50 is less than one sample of 99"):
        EpochOrder(103, 1, 8, LENGTHS, max_tokens=50)
    with pytest.raises(ConfigError, match=r"so must the number of samples, 0"):
        EpochOrder(0, 1, 8)
