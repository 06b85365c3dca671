"""The encoder of all modalities and both versions: stem, positions, visible tokens, blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from d2v_pretrain.models.block import Block, Context, Trace
from d2v_pretrain.models.init import initialise_blocks
from d2v_pretrain.models.positions import Positions
from d2v_pretrain.models.stems.base import Stem
from d2v_pretrain.types import Batch, Mask, Tokens


@dataclass(frozen=True)
class Encoded:
    """Output of an encoder for R rows of K visible tokens, each D numbers, with E extra tokens.

    Args:
        x: (R, E + K, D) output, the E extra tokens in front.
        layers: (R, K, D) feed-forward or block outputs of the last ``top_k`` blocks, in order,
            without extra tokens.
        valid: (R, K) bool, False at padding, or None.
        extra: E.
    """

    x: Tensor
    layers: list[Tensor]
    valid: Tensor | None
    extra: int

    @property
    def tokens(self) -> Tensor:
        """(R, K, D) output without the extra tokens."""
        return self.x[:, self.extra :]


class Encoder(nn.Module):
    """Stem, positions and a stack of ``Block``s.

    Shapes: R rows of T tokens of D channels, K of them visible; E extra tokens; H attention heads.

    The published encoders differ in these arguments alone. data2vec 2's "prenet" blocks are the
    first of the ``depth`` blocks, which ``top_k`` does not reach.

    Args:
        stem: inputs -> local features.
        block: makes one block; called with ``drop_path=rate`` for each, linearly increasing to
            ``drop_path``.
        width: D, channels of a token.
        depth: number of blocks.
        positions: offsets added to the tokens, or None.
        bias: module that computes an attention bias for all blocks, or None.
        layer_bias: makes a module like ``bias`` for each block; the two biases are added.
        extra_tokens: E learned tokens in front (CLS).
        extra_init: standard deviation of the initial extra tokens.
        input_norm: LayerNorm before the blocks (post-norm models).
        final_norm: LayerNorm after the blocks (pre-norm models).
        input_dropout: after ``input_norm``.
        drop_path: rate of the last block; it grows linearly from 0 at the first.
        layer_drop: probability of skipping a whole block in training, drawn on the host.
        zero_padding: set features at padding to 0 before positions are added (data2vec 1 audio and
            text).
        norm_eps: of ``input_norm`` and ``final_norm``.
        init: initial weights of the blocks, ``bert`` or ``beit``; see ``initialise_blocks``.
        checkpointing: recompute activations in backward: less memory, identical result, about 40 %
            slower.
    """

    def __init__(
        self,
        stem: Stem,
        block: Callable[..., Block],
        width: int,
        depth: int,
        positions: Positions | None = None,
        bias: nn.Module | None = None,
        extra_tokens: int = 0,
        extra_init: float = 1.0,
        input_norm: bool = True,
        final_norm: bool = False,
        input_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_drop: float = 0.0,
        zero_padding: bool = False,
        norm_eps: float = 1e-5,
        init: str = "bert",
        layer_bias: Callable[[], nn.Module] | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.width, self.depth, self.extra_tokens = width, depth, extra_tokens
        self.layer_drop, self.zero_padding = layer_drop, zero_padding
        self.input_dropout = input_dropout
        self.stem, self.positions, self.bias = stem, positions, bias
        self.input_norm = nn.LayerNorm(width, norm_eps) if input_norm else nn.Identity()
        self.final_norm = nn.LayerNorm(width, norm_eps) if final_norm else nn.Identity()
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(block(drop_path=rate) for rate in rates)
        self.layer_biases = (
            None if layer_bias is None else nn.ModuleList(layer_bias() for _ in range(depth))
        )
        if extra_tokens:
            self.extra = nn.Parameter(extra_init * torch.randn(1, extra_tokens, width))
        initialise_blocks(self.blocks, init)

    def forward(
        self,
        tokens: Tokens,
        mask: Mask | None = None,
        top_k: int = 0,
        tensor: str = "ffn",
        trace: Trace | None = None,
        allowed: Tensor | None = None,
        contexts: Sequence[Context] | None = None,
    ) -> Encoded:
        """Encode all tokens, or only the visible ones.

        Args:
            tokens: (R, T, D) from the stem.
            mask: if given, its dropped tokens are left out.
            top_k: return the outputs of this many last blocks.
            tensor: which output of a block, ``ffn`` (feed-forward) or ``block``.
            trace: collects the inputs, outputs and attention probabilities of all blocks.
            allowed: (R or 1, H or 1, T, T with cached tokens) bool, True where a token may attend
                to another; by default to all but padding.
            contexts: what each block reads beside its input.
        """
        x, valid, kept = self._visible(tokens, mask)
        if self.extra_tokens:
            extra: Tensor = self.extra
            if self.positions is not None:
                extra = self.positions.placed_extra(extra)
            x = torch.cat([extra.expand(x.shape[0], -1, -1).to(x.dtype), x], 1)
        if allowed is None and valid is not None:
            allowed = F.pad(valid, (self.extra_tokens, 0), value=True)[:, None, None]
        biases = self._attention_biases(tokens.grid, kept, allowed, x)
        x = F.dropout(self.input_norm(x), self.input_dropout, self.training)
        x, layers = self._blocks(x, biases, top_k, tensor, trace, contexts)
        return Encoded(self.final_norm(x), layers, valid, self.extra_tokens)

    def encode(self, batch: Batch, top_k: int = 0, tensor: str = "ffn") -> Encoded:
        """Encode the input without a mask. For the arguments see ``forward``."""
        return self(self.stem(batch), None, top_k, tensor)

    def _visible(
        self, tokens: Tokens, mask: Mask | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The tokens that are not dropped, with positions added: x (R, K, D), ``valid`` (R, K) as
        in ``Encoded``, and ``kept`` (R, K) as in ``Mask``."""
        x, valid = tokens.x, tokens.valid
        if self.zero_padding and valid is not None:
            x = x.masked_fill(~valid[..., None], 0)
        if mask is None:
            offsets = 0 if self.positions is None else self.positions(Tokens(x, tokens.grid, valid))
            return x + offsets, valid, None
        assert mask.kept is not None, (
            "tokens can only be dropped if every row keeps the same number"
        )
        kept = mask.kept
        seen = gather_rows(x, kept)
        if self.positions is not None:
            # Positions that look at their neighbours must not look at masked ones.
            hidden = x.masked_fill(mask.masked[..., None], 0)
            offsets = self.positions(Tokens(hidden, tokens.grid, valid))
            seen = seen + gather_rows(offsets.expand(x.shape[0], -1, -1), kept)
        return seen, None if valid is None else valid.gather(1, kept), kept

    def _attention_biases(
        self, grid: tuple[int, ...], kept: Tensor | None, allowed: Tensor | None, x: Tensor
    ) -> list[Tensor | None]:
        """The bias of each block's attention logits, in the dtype of these logits; see
        ``Attention``.
        """
        device = x.device.type
        mixed = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if mixed else x.dtype

        def made(module: nn.Module) -> Tensor:
            return module(grid, kept, self.extra_tokens).to(dtype)

        def masked(bias: Tensor | None) -> Tensor | None:
            if allowed is None or bias is None:
                return bias if allowed is None else allowed
            return bias.masked_fill(~allowed, float("-inf"))

        shared = None if self.bias is None else made(self.bias)
        if self.layer_biases is None:
            return [masked(shared)] * self.depth
        return [
            masked(made(own) if shared is None else shared + made(own)) for own in self.layer_biases
        ]

    def _blocks(
        self,
        x: Tensor,
        biases: list[Tensor | None],
        top_k: int,
        tensor: str,
        trace: Trace | None,
        contexts: Sequence[Context] | None,
    ) -> tuple[Tensor, list[Tensor]]:
        layers = []
        if trace is not None:
            trace.hidden.append(x)
        for depth, block in enumerate(self.blocks):
            if self.training and self.layer_drop > 0 and float(torch.rand(())) < self.layer_drop:
                # Parameters of a skipped block get a gradient of zero and not None, because DDP
                # waits for every gradient. So do those of the biases, in case that all blocks are
                # skipped.
                skipped = [block, self.bias]
                if self.layer_biases is not None:
                    skipped.append(self.layer_biases[depth])
                modules = [module for module in skipped if module is not None]
                x = x + sum(p.view(-1)[0] * 0 for module in modules for p in module.parameters())
            else:
                x, ffn = self._block(
                    block, x, biases[depth], trace, None if contexts is None else contexts[depth]
                )
                if depth >= self.depth - top_k:
                    layers.append((ffn if tensor == "ffn" else x)[:, self.extra_tokens :])
            if trace is not None:
                trace.hidden.append(x)
        return x, layers

    def _block(
        self,
        block: nn.Module,
        x: Tensor,
        bias: Tensor | None,
        trace: Trace | None,
        context: Context | None,
    ) -> tuple[Tensor, Tensor]:
        # A checkpointed block runs twice; it must not write into a trace or a cache twice.
        writes = (trace is not None and trace.attentions is not None) or (
            context is not None and context.past is not None
        )
        if writes or not (self.checkpointing and torch.is_grad_enabled()):
            return block(x, bias, trace, context)
        return checkpoint(block, x, bias, None, context, use_reentrant=False)


def mean_of_valid(x: Tensor, valid: Tensor | None) -> Tensor:
    """The mean over valid positions: (rows, tokens, channels) -> (rows, channels) float32."""
    x = x.float()
    if valid is None:
        return x.mean(1)
    # masked_fill and not a product, because padding may hold NaN.
    return x.masked_fill(~valid[..., None], 0.0).sum(1) / valid.sum(1, keepdim=True).clamp_min(1)


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """Of each row of ``x`` (rows, tokens, channels) the tokens at its positions in ``index``."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
