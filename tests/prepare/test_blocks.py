"""Where blocks begin and end, against fairseq's rule, transcribed line by line."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules.transforms.blocks import anywhere, limited, whole_lines


def fairseq(
    sizes: list[int], mode: str, block_size: int, document_sep_len: int = 1
) -> list[tuple[int, int]]:
    """fairseq 0.12.2, token_block_utils_fast.pyx:_get_slice_indices_fast."""
    tok_idx = sz_idx = curr_size = 0
    slices = []
    if mode == "none":
        total = sum(sizes)
        return [
            (i * block_size, min((i + 1) * block_size, total))
            for i in range(-(-total // block_size))
        ]
    if mode == "complete":
        while sz_idx < len(sizes):
            if curr_size + sizes[sz_idx] <= block_size or curr_size == 0:
                curr_size += sizes[sz_idx]
                sz_idx += 1
            else:
                slices.append((tok_idx, tok_idx + curr_size))
                tok_idx += curr_size
                curr_size = 0
        if curr_size > 0:
            slices.append((tok_idx, tok_idx + curr_size))
        return slices
    while sz_idx < len(sizes):
        if (curr_size + sizes[sz_idx] <= block_size or curr_size == 0) and sizes[
            sz_idx
        ] != document_sep_len:
            curr_size += sizes[sz_idx]
            sz_idx += 1
        else:
            if curr_size > 1:
                slices.append((tok_idx, tok_idx + curr_size))
            tok_idx += curr_size
            curr_size = 0
            if sizes[sz_idx] == document_sep_len:
                tok_idx += sizes[sz_idx]
                sz_idx += 1
    if curr_size > 1:
        slices.append((tok_idx, tok_idx + curr_size))
    return slices


@pytest.mark.parametrize("mode", ["none", "complete", "complete_doc"])
def test_cuts_are_fairseqs(mode: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        sizes = rng.integers(1, rng.integers(2, 14), rng.integers(1, 60))
        sizes[rng.random(len(sizes)) < 0.2] = 1
        block = int(rng.integers(2, 20))
        parts = np.array_split(sizes, rng.integers(1, 4))
        made = (
            anywhere(int(sizes.sum()), block)
            if mode == "none"
            else whole_lines([parts], block, mode != "complete")
        )
        assert list(map(tuple, made.tolist())) == fairseq(sizes.tolist(), mode, block)


def test_a_document_ends_with_its_file() -> None:
    first, second = np.array([3, 2, 1, 2]), np.array([2, 2])
    assert whole_lines([[first], [second]], 10, True).tolist() == [[0, 5], [6, 8], [8, 12]]
    assert whole_lines([[first], [second]], 10, False).tolist() == [[0, 10], [10, 12]]


def test_lines_longer_than_a_block_are_divided() -> None:
    blocks = np.array([[0, 4], [4, 15], [15, 20], [20, 21]])
    assert limited(blocks, 5).tolist() == [[0, 4], [4, 9], [9, 14], [14, 15], [15, 20], [20, 21]]
    assert limited(np.empty((0, 2), np.int64), 5).shape == (0, 2)
