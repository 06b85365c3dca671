"""What single settings of the reference mean: layers, blocks, decay, loss, targets."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from d2v_pretrain.models.block import Block
from d2v_pretrain.objective.loss import RegressionLoss
from d2v_pretrain.objective.targets import Targets
from d2v_pretrain.schedules import Linear

Settings = Mapping[str, Any]


def conv_layers(spec: str) -> list[tuple[int, int, int]]:
    """Turn text such as ``"[(512, 10, 5)] + [(512, 3, 2)] * 4"`` into the list of its five
    (channels, kernel, stride), without evaluating it as code."""
    layers: list[tuple[int, int, int]] = []
    for part, times in re.findall(r"(\[[^\]]*\])\s*(?:\*\s*(\d+))?", spec):
        layers += ast.literal_eval(part) * int(times or 1)
    return layers


def block_of(
    width: int, heads: int, ratio: float, dropouts: tuple[float, float, float], eps: float = 1e-5
) -> Callable[..., Block]:
    """Makes blocks. ``dropouts`` are for the residual branches, for attention weights, and inside
    the MLP."""
    residual, attention, inner = dropouts
    return partial(
        Block,
        width,
        heads,
        ratio,
        dropout=residual,
        attention_dropout=attention,
        activation_dropout=inner,
        norm_eps=eps,
    )


def decay_of(s: Settings) -> Linear:
    """The teacher's decay."""
    return Linear(s["ema_decay"], s["ema_end_decay"], s["ema_anneal_end_step"])


def loss_of(s: Settings) -> RegressionLoss:
    """The regression loss; no scale means one over the root of the width."""
    scale = s.get("loss_scale") or 0.0
    return RegressionLoss(s.get("loss_beta", 0.0), scale if scale > 0 else "sqrt_dim")


def targets_of(s: Settings) -> Targets:
    """Which layers are averaged, and how they are normalised."""
    layer = {"batch": "batch_norm_target_layer", "instance": "instance_norm_target_layer"}
    layer |= {"group": "group_norm_target_layer", "layer": "layer_norm_target_layer"}
    mean = {"layer": "layer_norm_targets", "instance": "instance_norm_targets"}
    tensor = "block" if s.get("end_of_block_targets") else "ffn"
    each, after = (tuple(n for n, key in table.items() if s.get(key)) for table in (layer, mean))
    return Targets(s["average_top_k_layers"], tensor, each, after, count_padding=True)
