"""ids_of(): the row of token ids in the bytes of an ``npy`` file."""

from __future__ import annotations

import io
import math
from functools import lru_cache

import numpy as np

from datamodules.datasets.unusable import Unusable, reading


def ids_of(data: bytes) -> np.ndarray:
    """The token ids in the bytes of an ``npy`` file, (tokens,) of an integer type.

    numpy's own reader takes memory for the shape that the header declares before it looks for the
    numbers.

    Raises:
        Unusable: if it is no such row, or does not have the ids that its header says.
    """
    with reading("its npy cannot be read"):
        begin = 10 + int.from_bytes(data[8:10], "little")  # where the ids begin, in version 1
        shape, kind = _header(data[:begin])
        if len(shape) != 1 or kind.kind not in "iu" or shape[0] < 1:
            raise Unusable(f"is no row of token ids: shape {shape}, {kind}")
        if len(data) - begin < math.prod(shape) * kind.itemsize:
            raise Unusable(f"breaks off: {shape[0]:,} ids do not fit into {len(data):,} bytes")
        return np.frombuffer(data, kind, shape[0], begin)


@lru_cache
def _header(head: bytes) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type from the first bytes of an ``npy``.

    Cached, because most blocks begin alike and numpy takes 20 microseconds to parse them.
    """
    file = io.BytesIO(head)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("of another version than 1.0")
    shape, _, kind = np.lib.format.read_array_header_1_0(file)
    if kind.hasobject:
        raise ValueError("holds objects")
    return shape, kind
