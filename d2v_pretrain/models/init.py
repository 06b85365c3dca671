"""Initial weights of blocks; those of stems and predictors are set in their own classes."""

from __future__ import annotations

import torch
from torch import nn

from d2v_pretrain.models.block import Block


def initialise_blocks(blocks: nn.ModuleList, scheme: str) -> None:
    """Initialise the linear layers of every block in place; biases become 0, norms stay 1 and 0.

    ``bert``: N(0, .02) (fairseq ``init_bert_params``). ``beit``: normal of std .02 truncated at
    +-.02, then the two output projections of block l (from 1) are divided by ``sqrt(2 l)`` (BEiT
    ``fix_init_weight``).
    """
    assert scheme in ("bert", "beit"), f"unknown init {scheme!r}: bert or beit"
    for depth, block in enumerate(blocks, start=1):
        assert isinstance(block, Block)
        for linear in (block.attention.qkv, block.attention.out, block.fc1, block.fc2):
            initialise_linear(linear, scheme)
        if scheme == "beit":
            with torch.no_grad():
                block.attention.out.weight.div_((2 * depth) ** 0.5)
                block.fc2.weight.div_((2 * depth) ** 0.5)


def initialise_linear(linear: nn.Linear, scheme: str) -> None:
    """Initialise a linear layer in place: ``bert``, ``beit`` (without the division) or ``default``,
    which keeps torch's initial weights.
    """
    assert scheme in ("bert", "beit", "default"), f"unknown init {scheme!r}: bert, beit or default"
    if scheme == "default":
        return
    if scheme == "bert":
        nn.init.normal_(linear.weight, std=0.02)
    else:
        nn.init.trunc_normal_(linear.weight, std=0.02, a=-0.02, b=0.02)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
