"""One transformer block, post-norm or pre-norm, that also returns its feed-forward output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_pretrain.models.attention import Attention, KeyValues


class Trace:
    """Collects intermediate results of a forward of R rows: E extra and T other tokens of D
    channels, H attention heads, S tokens of a context.

    Args:
        attentions: collect attention probabilities too, which are then computed without the fused
            kernel.

    Attributes:
        hidden: list of (R, E + T, D): the input of the first block, then the output of every block,
            also of skipped ones.
        attentions: list of (R, H, E + T, E + T), one for each block that was not skipped; None if
            not collected.
        cross_attentions: list of (R, H, T, S), one for each block that attends to a context; None
            if not collected.
    """

    def __init__(self, attentions: bool = False) -> None:
        self.hidden: list[Tensor] = []
        self.attentions: list[Tensor] | None = [] if attentions else None
        self.cross_attentions: list[Tensor] | None = [] if attentions else None


@dataclass
class Context:
    """What a block reads beside its input.

    Args:
        past: keys and values of earlier tokens, to which new ones are added; None for no cache.
        states: (rows, tokens, width) output of another encoder, or None.
        bias: attention bias over ``states``; see ``Attention``.
        past_states: cached keys and values of ``states``.
        heads: a factor for each attention head, or None.
    """

    past: KeyValues | None = None
    states: Tensor | None = None
    bias: Tensor | None = None
    past_states: KeyValues | None = None
    heads: Tensor | None = None


class Block(nn.Module):
    """Post-norm (both audio and text papers, data2vec 2): ``x = N1(x + attn(x)); f = mlp(x); x =
    N2(x + f)``. Pre-norm (data2vec 1 vision): ``x = x + g1 attn(N1(x)); f = mlp(N2(x)); x = x + g2
    f``.

    ``f``, the feed-forward output before dropout and residual, is the target tensor of all data2vec
    models but the first for vision. Source: fairseq ``TransformerSentenceEncoderLayer`` and
    ``AltBlock``, BEiT ``Block``. fairseq's pre-norm ``AltBlock`` leaves out the residual around
    attention; no published model uses it, and this class does not follow it.

    Args:
        width: D, channels of a token.
        heads: number of attention heads.
        mlp_ratio: hidden width of the feed-forward part as a multiple of D.
        norm_first: pre-norm.
        dropout: after attention and after the feed-forward part.
        attention_dropout: on attention probabilities.
        activation_dropout: after GELU.
        drop_path: probability of dropping a residual branch, per row.
        layer_scale: initial value of the learned factors g1 and g2; None for no factors.
        norm_eps: of the LayerNorms.
        key_bias: see ``Attention``.
        activation: of the feed-forward part.
        cross: a second attention, to the states of a ``Context``, stands between the two parts
            (post-norm only).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        norm_first: bool = False,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        activation_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        norm_eps: float = 1e-5,
        key_bias: bool = True,
        activation: Callable[[Tensor], Tensor] = F.gelu,
        cross: bool = False,
    ) -> None:
        super().__init__()
        assert not (cross and norm_first), "only post-norm blocks read a context"
        self.attention = Attention(width, heads, attention_dropout, key_bias)
        self.norm1, self.norm2 = nn.LayerNorm(width, norm_eps), nn.LayerNorm(width, norm_eps)
        hidden = int(width * mlp_ratio + 1e-6)  # 49 * (1 / 49) is less than 1
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm_first = norm_first
        self.dropout, self.activation_dropout = dropout, activation_dropout
        self.drop_path, self.activation = drop_path, activation
        self.cross = Attention(width, heads, attention_dropout) if cross else None
        self.cross_norm = nn.LayerNorm(width, norm_eps) if cross else None
        self.gamma1 = self.gamma2 = None
        if layer_scale is not None:
            self.gamma1 = nn.Parameter(torch.full((width,), float(layer_scale)))
            self.gamma2 = nn.Parameter(torch.full((width,), float(layer_scale)))

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        trace: Trace | None = None,
        context: Context | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens (rows, tokens, D) -> the block's output and the feed-forward output ``f``, both of
        that shape. For ``bias`` see ``Attention``."""
        weights, context = None if trace is None else trace.attentions, context or Context()
        if self.norm_first:
            x = x + self._branch(
                self.attention(self.norm1(x), bias, weights, heads=context.heads), self.gamma1
            )
            ffn = self._mlp(self.norm2(x))
            return x + self._branch(ffn, self.gamma2), ffn
        read = self.attention(x, bias, weights, context.past, heads=context.heads)
        x = self.norm1(x + self._branch(read, self.gamma1))
        if context.states is not None:
            x = self._read(x, context, None if trace is None else trace.cross_attentions)
        ffn = self._mlp(x)
        return self.norm2(x + self._branch(ffn, self.gamma2)), ffn

    def _read(self, x: Tensor, context: Context, weights: list[Tensor] | None) -> Tensor:
        assert self.cross is not None and self.cross_norm is not None, (
            "this block was built without cross attention"
        )
        y = self.cross(x, context.bias, weights, context.past_states, context.states, context.heads)
        return self.cross_norm(x + self._branch(y, None))

    def _mlp(self, x: Tensor) -> Tensor:
        return self.fc2(
            F.dropout(self.activation(self.fc1(x)), self.activation_dropout, self.training)
        )

    def _branch(self, y: Tensor, gamma: Tensor | None) -> Tensor:
        y = F.dropout(y, self.dropout, self.training)
        y = y if gamma is None else gamma * y
        if not self.training or self.drop_path == 0:
            return y
        keep = 1 - self.drop_path
        return y * (torch.rand(y.shape[0], 1, 1, device=y.device) < keep) / keep
