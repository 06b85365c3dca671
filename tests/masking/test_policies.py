"""What every policy promises: exact numbers, padding left alone, and a mask that depends on its
sample alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from d2v_pretrain.masking import BlockMask, MaskPolicy, RectangleMask, SpanMask, TokenMask
from d2v_pretrain.types import Mask

IDS = torch.tensor([3, 17, 1000, 5, 42, 8])
GRID1, GRID2 = (60,), (8, 8)
PADDED = torch.tensor([60, 41, 33, 60, 12, 59])

# Everything that is a function of one row: not spans made equal over a micro-batch.
OWN: dict[str, tuple[MaskPolicy, tuple[int, ...]]] = {
    "spans": (SpanMask(0.65, 10, equal=False), GRID1),
    "text spans": (SpanMask(0.35, 4, fit=False, equal=False), GRID1),
    "bert": (SpanMask(0.15, 1, fit=False, equal=False, keep_prob=0.1, random_prob=0.1), GRID1),
    "blocks": (BlockMask(0.5, 5, 0.05), GRID1),
    "inverse blocks": (BlockMask(0.8, 3, 0.07, inverse=True), GRID2),
    "tokens": (TokenMask(0.48), GRID1),
    "rectangles": (RectangleMask(40), GRID2),
}
EXACT = {"blocks", "inverse blocks", "tokens"}


def visible(mask: Mask) -> int:
    assert mask.kept is not None
    return mask.kept.shape[1]


@pytest.mark.parametrize(
    ("policy", "grid", "seen"),
    [
        (BlockMask(0.5, 5, 0.05), (499,), 250),
        (BlockMask(0.55, 5, 0.1), (499,), 225),
        (BlockMask(0.8, 3, 0.07, inverse=True), (14, 14), 39),
        (BlockMask(0.75, 3, 0.1, inverse=True), (14, 14), 49),
        (BlockMask(0.75, 3, 0.1, inverse=True), (16, 16), 64),
        (TokenMask(0.48), (512,), 266),
        (TokenMask(0.5), (512,), 256),
        (TokenMask(0.42), (512,), 296),
    ],
)
def test_published_numbers_of_visible_tokens(
    policy: MaskPolicy, grid: tuple[int, ...], seen: int
) -> None:
    mask = policy(0, IDS, 3, grid)
    assert visible(mask) == seen
    assert (mask.masked.sum(1) == mask.masked.shape[1] - seen).all()


@pytest.mark.parametrize(
    ("policy", "grid", "number"),
    [
        (BlockMask(0.5, 5, 0.05), (499,), 54),
        (BlockMask(0.55, 5, 0.1), (499,), 64),
        (BlockMask(0.8, 3, 0.07, inverse=True), (14, 14), 5),
        (BlockMask(0.75, 3, 0.1, inverse=True), (14, 14), 7),
        (BlockMask(0.75, 3, 0.1, inverse=True), (16, 16), 9),
    ],
)
def test_published_numbers_of_blocks(policy: BlockMask, grid: tuple[int, ...], number: int) -> None:
    """So many blocks' worth of tokens is never passed, and one block less is (squares are few
    enough to see it)."""
    size = grid[0] if len(grid) == 1 else grid[0] * grid[1]
    share = 1 - policy.prob if policy.inverse else policy.prob
    ids = torch.arange(20)
    covered = policy._blocks(0, ids, 1, grid, torch.full((20,), size), share).sum(1)
    assert int(covered.max()) <= number * policy.length ** len(grid)
    if len(grid) == 2:
        many = policy._blocks(0, torch.arange(3000), 1, grid, torch.full((3000,), size), share).sum(
            1
        )
        assert int(many.max()) > (number - 1) * policy.length**2


@pytest.mark.parametrize("name", OWN)
def test_a_sample_has_its_mask_in_any_batch(name: str) -> None:
    policy, grid = OWN[name]
    whole = policy(7, IDS, 3, grid).masked.view(6, 3, -1)
    assert torch.equal(policy(7, IDS[[4, 1]], 3, grid).masked, whole[[4, 1]].flatten(0, 1))
    assert torch.equal(policy(7, IDS, 2, grid).masked, whole[:, :2].flatten(0, 1))
    assert torch.equal(policy(7, IDS[:1], 1, grid).masked, whole[0, :1])


def test_equal_spans_depend_on_the_micro_batch_by_design() -> None:
    """data2vec 1 audio thins every row of a micro-batch to the number of the row with the
    fewest."""
    loose, tight = (
        SpanMask(0.65, 10, equal=False)(7, IDS, 1, GRID1),
        SpanMask(0.65, 10)(7, IDS, 1, GRID1),
    )
    numbers = loose.masked.sum(1)
    assert numbers.unique().numel() > 1
    assert (tight.masked.sum(1) == numbers.min()).all()
    assert (loose.masked | ~tight.masked).all()  # a subset of the row's own spans
    fewest = int(numbers.argmin())
    assert torch.equal(tight.masked[fewest], loose.masked[fewest])


@pytest.mark.parametrize("name", OWN)
def test_masks_repeat_with_their_key_and_differ_between_keys_clones_and_samples(name: str) -> None:
    policy, grid = OWN[name]
    first = policy(7, IDS, 3, grid).masked
    assert torch.equal(policy(7, IDS, 3, grid).masked, first)
    assert not (policy(8, IDS, 3, grid).masked == first).all(1).any()
    assert len(first.unique(dim=0)) == len(first)


@pytest.mark.parametrize("name", sorted(EXACT))
def test_every_row_keeps_the_same_number(name: str) -> None:
    policy, grid = OWN[name]
    mask = policy(0, torch.arange(50), 4, grid)
    assert mask.masked.sum(1).unique().numel() == 1
    assert visible(mask) == mask.masked.shape[1] - int(mask.masked[0].sum())


@pytest.mark.parametrize("name", [name for name, (_, grid) in OWN.items() if grid == GRID1])
def test_padding_is_never_predicted(name: str) -> None:
    policy, _ = OWN[name]
    mask = policy(7, IDS, 2, GRID1, PADDED)
    padding = torch.arange(60) >= PADDED.repeat_interleave(2)[:, None]
    assert not (mask.masked & padding).any()
    assert mask.random is None or not ((mask.random >= 0) & padding).any()
    assert (mask.masked.sum(1) > 0).all() or name == "bert"


@pytest.mark.parametrize(("name", "share"), [("blocks", 0.5), ("tokens", 0.48)])
def test_padded_rows_keep_equal_numbers_and_every_visible_real_token(
    name: str, share: float
) -> None:
    """Rows are filled up with padding; a real token is seen or predicted, never silently lost."""
    mask = OWN[name][0](7, IDS, 2, GRID1, PADDED)
    assert mask.kept is not None
    kept = torch.zeros_like(mask.masked).scatter(1, mask.kept, True)
    for row, length in enumerate(PADDED.repeat_interleave(2).tolist()):
        real = slice(0, length)
        assert torch.equal(kept[row, real], ~mask.masked[row, real])
        masked = int(length * share) if name == "blocks" else length - int(length * (1 - share))
        assert int(mask.masked[row].sum()) == masked
    assert visible(mask) == int((PADDED - mask.masked.view(6, 2, -1)[:, 0].sum(1)).max())


@pytest.mark.parametrize("name", ["spans", "text spans", "blocks", "tokens"])
def test_a_padded_row_has_the_masks_of_its_own_length(name: str) -> None:
    """Not the masks of the padded length cut off (blocks would reach into the padding)."""
    policy, _ = OWN[name]
    numbers = policy(7, torch.arange(400), 1, GRID1, torch.full((400,), 30)).masked.sum(1).double()
    alone = policy(9, torch.arange(400), 1, (30,)).masked.sum(1).double()
    assert abs(float(numbers.mean() - alone.mean())) <= 4.5 * float(alone.std()) * (2 / 400) ** 0.5


def test_spans_are_whole_and_never_reach_the_last_frame() -> None:
    mask = SpanMask(0.3, 10, equal=False)(1, torch.arange(300), 1, (100,)).masked
    assert not mask[:, -1].any()
    for row in mask.int():
        values, counts = torch.unique_consecutive(row, return_counts=True)
        assert (counts[values == 1] >= 10).all()


@pytest.mark.parametrize("size", [1, 2, 5, 10, 11, 12])
@pytest.mark.parametrize("fit", [True, False])
def test_spans_of_sequences_hardly_longer_than_a_span(size: int, fit: bool) -> None:
    mask = SpanMask(0.65, 10, fit=fit)(1, torch.arange(20), 1, (size,))
    assert mask.masked.shape == (20, size)
    assert (mask.masked.sum(1) >= (0 if fit and size < 3 else 1)).all()


def test_at_least_min_spans() -> None:
    masked = SpanMask(0.001, 3, equal=False, min_spans=2)(1, torch.arange(200), 1, (100,)).masked
    assert (masked.sum(1) >= 4).all() and (masked.sum(1) <= 6).all()


def test_bert_masking_hides_80_replaces_10_and_keeps_10_of_100() -> None:
    chosen = SpanMask(0.15, 1, False, False)(4, torch.arange(2000), 1, (512,))
    mask = SpanMask(0.15, 1, False, False, keep_prob=0.1, random_prob=0.1)(
        4, torch.arange(2000), 1, (512,)
    )
    assert mask.random is not None
    replaced, number = mask.random >= 0, int(chosen.count)
    assert (
        not (replaced & mask.masked).any() and not ((replaced | mask.masked) & ~chosen.masked).any()
    )
    for part, share in ((mask.masked, 0.8), (replaced, 0.1)):
        assert abs(int(part.sum()) - share * number) < 4.5 * (share * (1 - share) * number) ** 0.5
    values = mask.random[replaced]
    assert float(values.min()) >= 0 and float(values.max()) < 1
    assert abs(float(values.mean()) - 0.5) < 4.5 * (1 / 12 / len(values)) ** 0.5
    assert torch.equal(mask.random[~replaced].unique(), torch.tensor([-1.0]))


def test_rectangles_reach_their_goal_in_two_thirds_of_draws_and_never_pass_it() -> None:
    numbers = RectangleMask(120)(2, torch.arange(1500), 1, (14, 14)).masked.sum(1)
    assert int(numbers.max()) == 120
    assert abs(float((numbers == 120).double().mean()) - 0.68) < 4.5 * (0.68 * 0.32 / 1500) ** 0.5
    assert abs(float(numbers.double().mean()) - 119.49) < 0.12


@pytest.mark.parametrize(
    ("policy", "grid", "lengths"),
    [
        (RectangleMask(5), (60,), None),
        (RectangleMask(5), GRID2, PADDED),
        (BlockMask(0.5, 2), GRID2, PADDED),
    ],
)
def test_grids_that_a_policy_cannot_do_are_refused(
    policy: MaskPolicy, grid: tuple, lengths: Tensor | None
) -> None:
    with pytest.raises(AssertionError):
        policy(0, IDS, 1, grid, lengths)


def test_masks_draw_nothing_from_the_default_generator() -> None:
    before = torch.get_rng_state()
    for policy, grid in OWN.values():
        policy(0, IDS, 2, grid)
    assert torch.equal(torch.get_rng_state(), before)
