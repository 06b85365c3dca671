"""Multi-head attention through torch's fused kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class KeyValues:
    """Cache of the keys and values of one attention, (rows, heads, tokens, channels of a head)
    each; empty at first."""

    keys: Tensor | None = None
    values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values so far, the new ones last."""
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
        self.keys, self.values = keys, values
        return keys, values


class FusedProjection(nn.Linear):
    """One linear layer to q, k and v, of which a caller may ask for a part. Its weights are read in
    ``forward`` alone, because tools that keep weights elsewhere bring them for that call."""

    def forward(
        self, input: Tensor, bias: Tensor | None = None, rows: slice | None = None
    ) -> Tensor:
        """Tokens (…, D) -> (…, 3 D), or (…, the outputs in ``rows``).

        Args:
            input: of D channels.
            bias: (3 D,) in the place of the layer's own.
            rows: the outputs to compute; None for all.
        """
        bias = self.bias if bias is None else bias
        if rows is None:  # the parameter itself, which autocast converts once
            return F.linear(input, self.weight, bias)
        return F.linear(input, self.weight[rows], bias[rows])


class Attention(nn.Module):
    """``softmax(q k^T / sqrt(d) + bias) v`` with one fused projection to q, k and v; d = D / H.

    Shapes: B rows of T tokens that attend to S tokens, D channels, H heads.

    Args:
        width: D, channels of a token.
        heads: H, a divisor of D.
        dropout: on the attention probabilities. It makes attention 1.5 to 2 times slower.
        key_bias: the projection to k has a bias. In BEiT it has none; the biases of q and v are
            then separate parameters.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, key_bias: bool = True) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = FusedProjection(width, 3 * width, bias=key_bias)
        self.out = nn.Linear(width, width)
        if not key_bias:
            self.q_bias = nn.Parameter(torch.zeros(width))
            self.v_bias = nn.Parameter(torch.zeros(width))

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        weights: list[Tensor] | None = None,
        past: KeyValues | None = None,
        context: Tensor | None = None,
        heads: Tensor | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D).

        Args:
            x: (B, T, D).
            bias: added to the logits, broadcastable to (B, H, T, S), -inf where attention is
                forbidden; or bool, True where it is allowed.
            weights: a list to which the probabilities (B, H, T, S), after dropout, are appended.
                The fused kernel is then not used, and a row that may attend to nothing attends to
                all positions equally.
            past: cache of keys and values. Those of x are added to it; if ``context`` is given, it
                holds the keys and values of the context instead.
            context: (B, S, D) to attend to instead of x.
            heads: (H,) factors of the heads' probabilities, or None.
        """
        rows, size, width = x.shape
        if context is None:
            projected = self.qkv(x, self._bias())
            q, k, v = projected.view(rows, size, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            if past is not None:
                k, v = past.extend(k, v)
        else:
            q, k, v = self._across(x, context, past)
        v = v if heads is None else v * heads[:, None, None]
        if weights is None:
            y = F.scaled_dot_product_attention(
                q, k, v, bias, self.dropout if self.training else 0.0
            )
        else:
            weights.append(self._weights(q, k, bias))
            y = weights[-1] @ v
            weights[-1] = weights[-1] if heads is None else weights[-1] * heads[:, None, None]
        return self.out(y.transpose(1, 2).reshape(rows, size, width))

    def _bias(self) -> Tensor | None:
        """The bias of q and v where k has none; None if the projection has one of its own."""
        if self.qkv.bias is not None:
            return None
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def _across(
        self, x: Tensor, context: Tensor, past: KeyValues | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q of x, and k and v of the context, the latter from ``past`` if it holds them; (rows,
        heads, tokens, channels of a head) each.
        """
        width, bias = x.shape[-1], self._bias()
        q = self.qkv(x, bias, slice(width))
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if past is not None and past.keys is not None and past.values is not None:
            return q, past.keys, past.values
        both = self.qkv(context, bias, slice(width, None))
        k, v = both.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if past is not None:
            past.extend(k, v)
        return q, k, v

    def _weights(self, q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if bias is not None:
            forbids = bias.dtype == torch.bool
            logits = logits.masked_fill(~bias, float("-inf")) if forbids else logits + bias
        lowest = torch.finfo(logits.dtype).min
        return F.dropout(logits.clamp(min=lowest).softmax(-1), self.dropout, self.training)
