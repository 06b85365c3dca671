"""Stem: what turns raw inputs into tokens, and replaces masked ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from d2v_pretrain.types import Batch, Mask, Tokens


class Stem(nn.Module):
    """Turns the inputs of a ``Batch`` into ``Tokens``. It is the only part of an encoder that
    depends on the modality.

    Shapes: B samples, T tokens of each, D channels of a token.

    Attributes:
        reads: what the inputs are, in a word: ``waveform``, ``image``, ``tokens``, or the word of a
            modality of your own. The transform gives the same (``Transform.gives``).
        mask_vector: (D,) learned vector that replaces masked tokens; None if masked tokens are
            always dropped.
    """

    reads: str
    mask_vector: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("mask_vector", None)

    def forward(self, batch: Batch) -> Tokens:
        """Local features (B, T, D) of the input, which is not masked."""
        raise NotImplementedError

    def grid(self, shape: torch.Size) -> tuple[int, ...]:
        """Token grid for inputs of ``shape``, batch axis included."""
        raise NotImplementedError

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse settings that do not fit inputs of at most this shape, without the batch axis.

        Raises:
            ConfigError: naming the key.
        """

    def token_lengths(self, lengths: Tensor | None) -> Tensor | None:
        """(B,) number of tokens for (B,) input lengths, both on the host."""
        return lengths

    def replaced(self, batch: Batch, local: Tokens, mask: Mask) -> Tokens:
        """``local`` with masked tokens replaced, the student's input in data2vec 1.

        Args:
            batch: the inputs of ``local``.
            local: (B * clones, T, D).
            mask: of B * clones rows.
        """
        assert self.mask_vector is not None, "this stem was built without a mask vector"
        assert mask.random is None, "random replacement tokens need a stem with a vocabulary"
        x = torch.where(mask.masked[..., None], self.mask_vector.to(local.x.dtype), local.x)
        return Tokens(x, local.grid, local.valid)


def valid_positions(lengths: Tensor | None, size: int, device: torch.device) -> Tensor | None:
    """(rows, size) bool on ``device``, True at real tokens; None if all are real."""
    if lengths is None:
        return None
    return torch.arange(size, device=device) < lengths.to(device, non_blocking=True)[:, None]
