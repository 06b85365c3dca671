"""Batch, Tokens and Mask against loops; what they refuse."""

from __future__ import annotations

import pytest
import torch

from d2v_pretrain.types import Batch, Mask, Tokens


def booleans(rows: int, size: int, per_row: list[int], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(rows, size, dtype=torch.bool)
    for row, count in enumerate(per_row):
        mask[row, torch.randperm(size, generator=generator)[:count]] = True
    return mask


def positions(row: torch.Tensor) -> list[int]:
    return [i for i, value in enumerate(row.tolist()) if value]


def test_mask_index_lists_equal_loops() -> None:
    masked = booleans(4, 11, [5, 5, 5, 5])
    mask = Mask.of(masked)
    assert mask.kept is not None and mask.restore is not None
    assert mask.index.tolist() == [r * 11 + i for r in range(4) for i in positions(masked[r])]
    assert mask.count == 20
    for row in range(4):
        visible, dropped = positions(~masked[row]), positions(masked[row])
        assert mask.kept[row].tolist() == visible
        assert [(visible + dropped)[i] for i in mask.restore[row].tolist()] == list(range(11))


def test_mask_with_rows_of_unequal_number_cannot_drop() -> None:
    masked = booleans(3, 8, [2, 3, 2])
    mask = Mask.of(masked)
    assert mask.kept is None and mask.restore is None
    assert mask.index.tolist() == [r * 8 + i for r in range(3) for i in positions(masked[r])]


def test_dropped_superset_decides_what_is_kept_and_masked_what_is_predicted() -> None:
    masked, dropped = booleans(2, 9, [3, 2]), booleans(2, 9, [3, 2])
    dropped[0, positions(~dropped[0])[0]] = True
    dropped[1, positions(~dropped[1])[:2]] = True
    mask = Mask.of(masked, dropped)
    assert mask.count == 5 and mask.kept is not None
    assert [row.tolist() for row in mask.kept] == [positions(~row) for row in dropped]
    assert torch.equal(mask.masked, masked)


def test_masking_nothing_and_everything() -> None:
    nothing, everything = Mask.of(booleans(2, 4, [0, 0])), Mask.of(booleans(2, 4, [4, 4]))
    assert (
        nothing.count == 0
        and nothing.kept is not None
        and nothing.kept.tolist() == [[0, 1, 2, 3]] * 2
    )
    assert everything.count == 8 and everything.kept is not None and everything.kept.shape == (2, 0)


def test_without_rows_predicts_nothing_there_and_shows_the_same() -> None:
    mask = Mask.of(booleans(3, 7, [3, 3, 3]), random=torch.zeros(3, 7))
    less = mask.without(torch.tensor([False, True, False]))
    assert less.count == 6 and not less.masked[1].any()
    assert less.index.tolist() == [i for i in mask.index.tolist() if i // 7 != 1]
    assert less.kept is mask.kept and less.restore is mask.restore and less.random is mask.random
    assert mask.count == 9


def test_mask_to_moves_every_tensor() -> None:
    mask = Mask.of(booleans(2, 5, [2, 2]), random=torch.zeros(2, 5)).to("meta")
    for tensor in (mask.masked, mask.index, mask.kept, mask.restore, mask.random):
        assert tensor is not None and tensor.device.type == "meta"
    bare = Mask.of(booleans(2, 5, [1, 2])).to("cpu")
    assert bare.kept is None and bare.restore is None and bare.random is None


@pytest.mark.parametrize("bad", [torch.zeros(2, 3), torch.zeros(6, dtype=torch.bool)])
def test_mask_refuses_other_than_boolean_matrices(bad: torch.Tensor) -> None:
    with pytest.raises(AssertionError):
        Mask.of(bad)


@pytest.mark.parametrize("shape", [(2, 100), (2, 3, 8, 8)])
def test_batch_takes_its_shapes_and_moves_inputs_and_labels_only(shape: tuple[int, ...]) -> None:
    per_row = torch.arange(2)
    batch = Batch(torch.zeros(shape), per_row, per_row, per_row, per_row.float(), 3, (4, 5))
    moved = batch.to("meta")
    assert len(batch) == 2
    assert moved.inputs.device.type == moved.labels.device.type == "meta"  # type: ignore[union-attr]
    assert all(t.device.type == "cpu" for t in (moved.ids, moved.lengths, moved.weight))  # type: ignore[union-attr]
    assert (moved.epoch, moved.cursor) == (3, (4, 5))


@pytest.mark.parametrize("field", ["ids", "lengths", "labels", "weight"])
def test_batch_refuses_other_than_one_entry_a_row(field: str) -> None:
    fields = {"ids": torch.arange(2)} | {field: torch.arange(3)}
    with pytest.raises(AssertionError, match=field):
        Batch(torch.zeros(2, 10), **fields)  # type: ignore[arg-type]


def test_batch_refuses_other_ranks() -> None:
    with pytest.raises(AssertionError, match="inputs"):
        Batch(torch.zeros(2, 10, 3, 4, 5), torch.arange(2))


def test_batch_takes_signals_of_several_channels() -> None:
    batch = Batch(torch.zeros(2, 3, 10), torch.arange(2), torch.tensor([10, 7]))
    assert len(batch) == 2 and batch.to("meta").inputs.shape == (2, 3, 10)


def test_tokens_repeat_rows_in_order() -> None:
    x, valid = (
        torch.arange(12.0).view(2, 3, 2),
        torch.tensor([[True, True, False], [True, True, True]]),
    )
    tokens = Tokens(x, (3,), valid).repeat(3)
    assert tokens.valid is not None
    for row in range(6):
        assert torch.equal(tokens.x[row], x[row // 3]) and torch.equal(
            tokens.valid[row], valid[row // 3]
        )
    plain = Tokens(x, (3,))
    assert plain.repeat(1) is plain and plain.repeat(2).valid is None


def test_tokens_refuse_a_grid_or_padding_that_does_not_fit() -> None:
    Tokens(torch.zeros(1, 12, 2), (3, 4))
    with pytest.raises(AssertionError, match="grid"):
        Tokens(torch.zeros(1, 12, 2), (3, 3))
    with pytest.raises(AssertionError):
        Tokens(torch.zeros(1, 12, 2), (12,), torch.ones(1, 11, dtype=torch.bool))
