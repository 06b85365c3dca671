"""Cut a stream of lines into blocks, as fairseq's TokenBlockDataset does in three break modes."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np


def anywhere(total: int, size: int) -> np.ndarray:
    """The first token and the end of each block, (blocks, 2), for blocks of ``size`` tokens that
    may be cut anywhere (break mode "none").

    The last block may be shorter.
    """
    starts = np.arange(0, total, size)
    return np.stack([starts, np.minimum(starts + size, total)], 1)


def whole_lines(documents: Iterable[Iterable[np.ndarray]], size: int, split: bool) -> np.ndarray:
    """The first token and the end of each block, (blocks, 2), for blocks of as many uncut lines as
    fit into ``size`` tokens.

    A line that is longer is a block by itself.

    Source: fairseq ``token_block_utils_fast.pyx:_get_slice_indices_fast``, "complete" and
    "complete_doc". There the dataset is one file; here the end of a file ends a document too.

    Args:
        documents: the sizes of the lines in tokens, ``</s>`` included, of each file: one or more
            arrays per file.
        size: tokens of a block, without ``<s>``.
        split: end a block where a document ends, and leave out the blank lines (one token) between
            documents ("complete_doc").
    """
    cuts = array("q")
    start = filled = 0
    for document in documents:
        for part in document:
            for line in part.tolist():
                ends = split and line == 1
                if filled and (ends or filled + line > size):
                    cuts.extend((start, start + filled))
                    start, filled = start + filled, 0
                if ends:
                    start += 1
                else:
                    filled += line
        if split and filled:
            cuts.extend((start, start + filled))
            start, filled = start + filled, 0
    if filled:
        cuts.extend((start, start + filled))
    return np.array(cuts, np.int64).reshape(-1, 2)


def limited(blocks: np.ndarray, size: int) -> np.ndarray:
    """The blocks, (blocks, 2), with those of more than ``size`` tokens cut into several.

    fairseq does not cut these; as they are longer than the model's positions, training then stops
    or leaves them out.
    """
    pieces = -(-(blocks[:, 1] - blocks[:, 0]) // size)
    first = np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = np.repeat(blocks[:, 0], pieces) + (np.arange(pieces.sum()) - first) * size
    return np.stack([starts, np.minimum(starts + size, np.repeat(blocks[:, 1], pieces))], 1)
