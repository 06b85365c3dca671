"""Mask policies: they draw masks from counter-based noise, on the host, for whole batches."""

from d2v_pretrain.masking.base import MaskPolicy
from d2v_pretrain.masking.block import BlockMask
from d2v_pretrain.masking.rectangle import RectangleMask
from d2v_pretrain.masking.span import SpanMask
from d2v_pretrain.masking.token import TokenMask

__all__ = ["BlockMask", "MaskPolicy", "RectangleMask", "SpanMask", "TokenMask"]
