"""SpecAugment: the masks that fine-tuning an audio model draws over time and over channels."""

from __future__ import annotations

import torch
from torch import Tensor

from d2v_pretrain.masking.base import highest, within


def span_mask(
    rows: int,
    size: int,
    prob: float,
    length: int,
    min_spans: int,
    lengths: Tensor | None,
    device: torch.device,
) -> Tensor:
    """(rows, size) bool, True inside spans of ``length``; they may overlap.

    A row of n places gets ``int(prob n / length + u)`` spans, at least ``min_spans`` and at most
    what fits, with one uniform u for the whole batch; starts are drawn without replacement from the
    ``n - length + 1`` places where a span is whole. Source: transformers ``_compute_mask_indices``,
    with the same distribution, but torch's generator of ``device`` instead of numpy's. A row too
    short for a span gets none; theirs raises if no row has room for one.

    Args:
        rows: number of clips.
        size: number of places in a row: frames or channels.
        prob: share of the places that would be in spans if spans did not overlap.
        length: places of a span.
        min_spans: at least so many spans a row.
        lengths: number of real places in each row, or None if all are real.
        device: where the mask is drawn.
    """
    places = torch.full((rows,), size, device=device) if lengths is None else lengths.to(device)
    rounding = torch.rand((), device=device, dtype=torch.float64)
    starts = (places - length + 1).clamp(min=0)
    count = (prob * places.double() / length + rounding).long().clamp(min=min_spans)
    count = torch.minimum(count.clamp(max=size // length), starts)
    score = torch.rand(rows, size, device=device).masked_fill(~within(starts, size), -1.0)
    begun = highest(score, count).long().cumsum(1)
    return begun > torch.nn.functional.pad(begun, (length, 0))[:, :size]
