"""Regression targets: the normalised average of the teacher's top-k layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-5
_LAYER_ORDER = ("batch", "instance", "group", "layer")
_MEAN_ORDER = ("layer", "instance")


@dataclass(frozen=True)
class Targets:
    """``mean_norms(mean over k of layer_norms(layer k))`` in float32, without affine parameters,
    eps 1e-5. Layers are (B, T, D): B samples of T tokens of D channels.

    Norms are applied in the reference's order, whatever order is given: ``batch`` (over B and T),
    ``instance`` (over T, per sample and channel), ``group`` (over T and D), ``layer`` (over D);
    after the mean ``layer``, then ``instance``. Source: fairseq ``data2vec2.py:make_targets``,
    ``data2vec_audio.py:forward``; BEiT ``engine_for_cyclical.py``. One difference: with neither
    batch nor instance norm per layer, the reference's audio code normalises the mean over the batch
    axis, and ours does not.

    Args:
        top_k: number of last blocks averaged.
        tensor: ``ffn`` (feed-forward output before the residual) or ``block``.
        layer_norms: of each layer's output, among batch, instance, group, layer.
        mean_norms: of the average, among layer, instance.
        count_padding: include padded frames in the statistics of batch, instance and group norms,
            as the reference does.
    """

    top_k: int
    tensor: str = "ffn"
    layer_norms: Sequence[str] = ("instance",)
    mean_norms: Sequence[str] = ()
    count_padding: bool = False

    def __post_init__(self) -> None:
        for names, known in ((self.layer_norms, _LAYER_ORDER), (self.mean_norms, _MEAN_ORDER)):
            unknown = set(names) - set(known)
            assert not unknown, f"unknown target norms {unknown}: choose from {known}"

    def __call__(self, layers: Sequence[Tensor], valid: Tensor | None) -> Tensor:
        """Compute the targets.

        Args:
            layers: ``top_k`` tensors of (B, T, D).
            valid: (B, T) bool, False at padding, or None.

        Returns:
            The targets, (B, T, D) float32.
        """
        assert len(layers) == self.top_k, f"{len(layers)} layers, and top_k is {self.top_k}"
        counted = None if self.count_padding else valid
        total = torch.zeros_like(layers[0], dtype=torch.float32)
        for layer in layers:
            total += _apply(layer.float(), self.layer_norms, _LAYER_ORDER, counted)
        return _apply(total / self.top_k, self.mean_norms, _MEAN_ORDER, counted)


def _apply(x: Tensor, names: Sequence[str], order: Sequence[str], valid: Tensor | None) -> Tensor:
    for name in order:
        if name in names:
            x = _normalise(x, name, valid)
    return x


def _normalise(x: Tensor, norm: str, valid: Tensor | None) -> Tensor:
    if norm == "layer":
        return F.layer_norm(x, x.shape[-1:], eps=_EPS)
    if norm == "group":
        whole = valid is None
        return F.layer_norm(x, x.shape[-2:], eps=_EPS) if whole else _standardise(x, valid, (1, 2))
    return _standardise(x, valid, 1 if norm == "instance" else (0, 1))


def _standardise(x: Tensor, valid: Tensor | None, dims: int | tuple[int, ...]) -> Tensor:
    if valid is None:
        variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
        return (x - mean) * (variance + _EPS).rsqrt()
    weight = valid[..., None].to(x.dtype).expand_as(x)
    count = weight.sum(dims, keepdim=True)
    mean = (x * weight).sum(dims, keepdim=True) / count
    variance = ((x - mean).square() * weight).sum(dims, keepdim=True) / count
    return (x - mean) * (variance + _EPS).rsqrt()
