"""Checks of what the models are called with: a mistake is a sentence and no error of torch.

Types and shapes are always checked. Values are read only where reading them is free: on the CPU,
and not while ``torch.compile``, ``torch.export`` or ``torch.jit.trace`` records a graph. Reading
them on a GPU would make the CPU wait for it in every forward; there torch itself reports an index
that is out of range.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from d2v_pretrain.errors import ConfigError, OutOfRange

IGNORED = -100  # the label that losses leave out, as in torch


def readable(x: Tensor) -> bool:
    """Whether reading the values of a tensor costs nothing and disturbs no recording."""
    # A FakeTensor, which has no values, is of another type.
    return not recording() and x.device.type == "cpu" and type(x) is Tensor


def recording() -> bool:
    """Whether a graph of the operations is being recorded."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def shape_of(x: Tensor) -> str:
    """The shape as messages show it."""
    return f"of shape {tuple(x.shape)}"


def as_numbers(key: str, x: Any, *axes: str) -> Tensor:
    """An input of real numbers.

    Args:
        key: name of the argument.
        x: what was given.
        axes: what the axes are; any if none are named. Each must have at least one entry.

    Raises:
        ConfigError: no tensor of real numbers, another number of axes, or an empty one.
    """
    _check_axes(key, x, axes)
    if not x.is_floating_point():
        rule = "must be real numbers"
        raise ConfigError(key, f"of type {_kind(x)}", rule, "give float32, normalised")
    return x


def as_ids(key: str, x: Any, size: int, *axes: str) -> Tensor:
    """Indices into a table of ``size`` rows; for the others see ``as_numbers``.

    Raises:
        ConfigError: no tensor of whole numbers, another number of axes, or an empty one.
        OutOfRange: an index is not in the table.
    """
    _check_axes(key, x, axes)
    if x.dtype not in (torch.int32, torch.int64):
        rule = "must be of type int64 or int32"
        raise ConfigError(key, f"of type {_kind(x)}", rule, f"write {key}.long()")
    _check_range(key, x, size)
    return x


def class_ids(
    labels: Any,
    size: int,
    *shape: int,
    key: str = "labels",
    ignored: int | None = IGNORED,
    unlimited: bool = False,
) -> Tensor:
    """Labels of a cross entropy, as int64. If all are ``ignored``, the loss is NaN, as in torch;
    that is told by a warning.

    Args:
        labels: what was given.
        size: number of classes.
        shape: their shape; fewer or more axes are taken if the number of labels is right.
        key: name of the argument.
        ignored: the label to leave out, None if there is none.
        unlimited: do not compare them with ``size``.

    Raises:
        ConfigError: no tensor of whole numbers, or another number of labels.
        OutOfRange: a label is no class.
    """
    _check_tensor(key, labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        rule = "must be whole numbers, the ids of classes"
        raise ConfigError(key, f"of type {_kind(labels)}", rule, f"write {key}.long()")
    check_fits(key, labels, shape)
    if readable(labels) and not unlimited:
        kept = labels if ignored is None else labels[labels != ignored]
        if not kept.numel():
            text = f"none of the {key} counts, because all are {ignored}: the loss is NaN"
            warnings.warn(text, stacklevel=2)
        more = f", or {ignored} to leave one out" if ignored is not None else ""
        _check_range(key, kept, size, more)
    return labels.long()


def check_characters(labels: Tensor, clips: int, vocabulary: int, blank: int | None) -> int:
    """Check the labels of CTC, (clips, characters), and give the id of its blank. The labels are
    read on every device, because the loss waits for the device as well, when it chooses the real
    ones among them.

    Raises:
        ConfigError: another shape, no character, one that is not in the vocabulary, or no blank.
    """
    if blank is None or not 0 <= blank < vocabulary:
        rule = f"must be the id of the CTC blank, below vocab_size={vocabulary}"
        raise ConfigError("pad_token_id", blank, rule, "set pad_token_id=0")
    if not torch.is_tensor(labels) or labels.ndim != 2 or len(labels) != clips or 0 in labels.shape:
        shown = shape_of(labels) if torch.is_tensor(labels) else f"of type {type(labels).__name__}"
        rule = f"must be a tensor of {clips} clips by at least one character"
        raise ConfigError("labels", shown, rule, f"write {IGNORED} for a clip without text")
    if not recording() and (highest := int(labels.max())) >= vocabulary:
        raise ConfigError("labels", highest, f"must be below vocab_size, {vocabulary}")
    return blank


def check_fits(key: str, x: Tensor, shape: Sequence[int], rule: str = "") -> None:
    """Refuse another shape than this one, unless it has the same number of entries on fewer or more
    axes."""
    shape = tuple(shape)
    if x.numel() != torch.Size(shape).numel() or (x.ndim == len(shape) and x.shape != shape):
        raise ConfigError(key, shape_of(x), f"must be {shape}{rule}")


def _kind(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _check_tensor(key: str, x: Any) -> None:
    if not torch.is_tensor(x):
        remedy = f"write torch.as_tensor({key})"
        raise ConfigError(key, f"of type {type(x).__name__}", "must be a tensor", remedy)


def _check_axes(key: str, x: Any, axes: tuple[str, ...]) -> None:
    _check_tensor(key, x)
    if x.ndim != (len(axes) or x.ndim) or 0 in x.shape:
        remedy = f"write {key}[None] for one" if x.ndim == len(axes) - 1 else ""
        rule = f"must be {' by '.join(axes) or 'a batch'}, at least one of each"
        raise ConfigError(key, shape_of(x), rule, remedy)


def _check_range(key: str, x: Tensor, size: int, more: str = "") -> None:
    if not readable(x) or not x.numel():
        return
    low, high = (int(value) for value in x.aminmax())
    if low < 0 or high >= size:
        wrong = low if low < 0 else high
        raise OutOfRange(key, wrong, f"must be from 0 to {size - 1}{more}")
