"""Token ids -> embeddings with learned positions, LayerNorm and dropout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_pretrain.models.stems.base import Stem
from d2v_pretrain.types import PAD, Batch, Mask, Tokens

SPECIALS = 4


class TokenTable(nn.Embedding):
    """The vectors of tokens, (vocabulary, D). A tied language-model head decodes with them."""

    def forward(self, input: Tensor, bias: Tensor | None = None) -> Tensor:
        """Token ids (…) -> their vectors (…, D); vectors (…, D) -> logits (…, vocabulary), to which
        ``bias`` (vocabulary,) is added."""
        if input.is_floating_point():
            return F.linear(input, self.weight, bias)
        return super().forward(input)


class TextStem(Stem):
    """RoBERTa's embeddings: ``dropout(LayerNorm(token + position))``; ``<mask>`` is the last id of
    the vocabulary.

    Masking replaces *ids*, before the LayerNorm, as published. Positions of real tokens start at
    ``pad + 1``. Source: fairseq ``TransformerEncoder.forward_embedding``, ``TextLocalEncoder``.

    Args:
        width: D, channels of a token.
        vocabulary: number of ids, with ``<s>`` 0, ``<pad>`` 1, ``</s>`` 2, ``<unk>`` 3 and
            ``<mask>`` last.
        max_tokens: longest sequence; None for no learned positions, because the encoder adds
            positions itself.
        dropout: of the embeddings.
        norm_eps: of the LayerNorm.
        pad: id of ``<pad>``.
        types: rows of a table of token types (segments), which is added too; 0 for none.
    """

    reads = "tokens"

    def __init__(
        self,
        width: int,
        vocabulary: int,
        max_tokens: int | None = 512,
        dropout: float = 0.1,
        norm_eps: float = 1e-5,
        pad: int = PAD,
        types: int = 0,
    ) -> None:
        super().__init__()
        self.pad = pad
        self.token = TokenTable(vocabulary, width, pad)
        rows = None if max_tokens is None else max_tokens + pad + 1
        self.position = None if rows is None else nn.Embedding(rows, width, pad)
        self.segment = nn.Embedding(types, width) if types else None
        self.norm = nn.LayerNorm(width, norm_eps)
        self.dropout = nn.Dropout(dropout)
        for table in (self.token, self.position):
            if table is None:
                continue
            nn.init.normal_(table.weight, std=0.02)
            with torch.no_grad():
                table.weight[pad].zero_()

    def forward(self, batch: Batch) -> Tokens:
        """Token ids (B, T) int64 of B texts of T tokens -> embeddings (B, T, D)."""
        valid = None if batch.lengths is None else batch.inputs != self.pad
        return Tokens(self._embed(batch.inputs, valid), batch.inputs.shape[1:2], valid)

    def grid(self, shape: torch.Size) -> tuple[int, ...]:
        """The number of tokens, as a tuple, for ids of shape (texts, tokens)."""
        return (shape[1],)

    def replaced(self, batch: Batch, local: Tokens, mask: Mask) -> Tokens:
        """Embed the ids again, with ``<mask>`` in place of masked ones and random ids where the
        mask has some.
        """
        ids = batch.inputs.repeat_interleave(mask.masked.shape[0] // len(batch), 0)
        last = self.token.num_embeddings - 1
        if mask.random is not None:
            regular = SPECIALS + (mask.random * (last - SPECIALS)).long()
            ids = torch.where(mask.random >= 0, regular, ids)
        embedded = self._embed(ids.masked_fill(mask.masked, last), local.valid)
        return Tokens(embedded, local.grid, local.valid)

    def _embed(self, ids: Tensor, valid: Tensor | None) -> Tensor:
        real = torch.ones_like(ids) if valid is None else valid.long()
        return self.combine(self.token(ids), real.cumsum(1) * real + self.pad)

    def combine(self, x: Tensor, places: Tensor, types: Tensor | None = None) -> Tensor:
        """Embeddings from token vectors.

        Args:
            x: (B, T, D) token vectors of B texts.
            places: (B, T) rows of the position table.
            types: (B, T) token types; all 0 by default.

        Returns:
            The embeddings, (B, T, D).
        """
        if self.segment is not None:
            x = x + self.segment(torch.zeros_like(places) if types is None else types)
        if self.position is not None:
            x = x + self.position(places)
        return self.dropout(self.norm(x))
