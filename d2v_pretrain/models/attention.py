"""Multi-head self-attention through torch's fused kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """``softmax(q k^T / sqrt(d) + bias) v`` with one fused projection to q, k and v.

    Args:
        width: D.
        heads: H, a divisor of D.
        dropout: on the attention probabilities. It costs 1.5 to 2 times the attention without it.
        key_bias: k has a bias. BEiT's has none; q and v then carry theirs as separate parameters.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, key_bias: bool = True) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width, bias=key_bias)
        self.out = nn.Linear(width, width)
        if not key_bias:
            self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D).

        Args:
            bias: added to the logits, broadcastable to (B, H, T, T), -inf where attention is forbidden; or bool, True
                where it is allowed.
        """
        rows, size, width = x.shape
        q, k, v = self._project(x).view(rows, size, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, bias, self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).reshape(rows, size, width))

    def _project(self, x: Tensor) -> Tensor:
        if self.qkv.bias is not None:
            return self.qkv(x)
        return F.linear(x, self.qkv.weight, torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias]))
