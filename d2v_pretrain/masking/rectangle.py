"""Random rectangles of an image: data2vec 1's masking of images, after BEiT."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.masking.base import MaskPolicy
from d2v_pretrain.rng import fold_in, noise
from d2v_pretrain.types import Mask

_TRIES = 10


@dataclass(frozen=True)
class RectangleMask(MaskPolicy):
    """Add rectangles until ``count`` patches are masked or ten tries in a row fail. The number of
    masked patches therefore differs between images.

    A try draws an area uniformly from [min_patches, patches still wanted] and a log-uniform aspect
    ratio, and is accepted if the rectangle is smaller than the image in both directions and newly
    covers between 1 and the patches still wanted.

    Source: BEiT ``masking_generator.py:MaskingGenerator``. With ``count=120`` of 196
    patches, 68 % of the images have exactly 120 masked patches, and the mean is 119.5.

    Args:
        count: patches to mask, of ``rows * columns``.
        min_patches: smallest area of a rectangle.
        min_aspect: smallest ratio of height to width; the largest is its inverse.
    """

    equal_rows: ClassVar[bool] = False

    count: int
    min_patches: int = 16
    min_aspect: float = 0.3

    def check(self, grid: tuple[int, ...], reads: str) -> None:
        if len(grid) != 2:
            rule = f"needs images, and the stem reads {reads}"
            raise ConfigError("masking", "rectangle", rule, "choose span, block or token")
        patches = grid[0] * grid[1]
        if not 1 <= self.count < patches:
            rule = f"must be less than the {patches} patches of an image"
            remedy = f"type masking.count={int(0.6 * patches)}"
            raise ConfigError("masking.count", self.count, rule, remedy)

    def __call__(
        self,
        key: int,
        ids: Tensor,
        clones: int,
        grid: tuple[int, ...],
        lengths: Tensor | None = None,
    ) -> Mask:
        assert len(grid) == 2 and lengths is None, "rectangles need a full two-dimensional grid"
        masked = torch.zeros(len(ids) * clones, *grid, dtype=torch.bool, device=ids.device)
        active = torch.ones(len(masked), dtype=torch.bool, device=ids.device)
        for turn in range(self.count):
            wanted = self.count - masked.sum((1, 2))
            draws = noise(fold_in(key, turn), ids, clones, 4 * _TRIES).view(-1, 4, _TRIES)
            added = self._first_accepted(draws, masked, wanted)
            active = active & (wanted > 0) & added.any(-1).any(-1)
            if not bool(active.any()):
                break
            masked |= added & active[:, None, None]
        return Mask.of(masked.flatten(1))

    def _first_accepted(self, draws: Tensor, masked: Tensor, wanted: Tensor) -> Tensor:
        """For each of R masks the first of its ten tries that is accepted: (R, rows, columns) bool,
        True inside the rectangle, False everywhere if no try is accepted.

        Args:
            draws: (R, 4, tries) uniform numbers for area, aspect, top and left.
        """
        rows, columns = masked.shape[1:]
        area = self.min_patches + draws[:, 0] * (wanted[:, None] - self.min_patches)
        aspect = torch.exp((1 - 2 * draws[:, 1]) * math.log(self.min_aspect))
        height, width = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
        top = (draws[:, 2] * (rows - height + 1)).long()
        left = (draws[:, 3] * (columns - width + 1)).long()
        in_rows, in_columns = _between(top, height, rows), _between(left, width, columns)
        inside = in_rows[..., :, None] & in_columns[..., None, :]
        new = (inside & ~masked[:, None]).sum((2, 3))
        accepted = (height < rows) & (width < columns) & (new > 0) & (new <= wanted[:, None])
        first = accepted & (accepted.cumsum(1) == 1)
        return (inside & first[..., None, None]).any(1)


def _between(start: Tensor, length: Tensor, n: int) -> Tensor:
    """(masks, tries, n) bool, True at the positions from ``start`` up to ``start + length``."""
    place = torch.arange(n, device=start.device)
    return (place >= start[..., None]) & (place < (start + length)[..., None])
