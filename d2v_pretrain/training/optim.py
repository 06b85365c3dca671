"""Parameter groups and what happens between backward and the optimizer step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def parameter_groups(
    modules: Iterable[nn.Module],
    weight_decay_on: str = "matrices",
    lr_scales: Mapping[str, float] | None = None,
) -> list[dict]:
    """Split the trainable parameters by weight decay and learning-rate scale.

    Args:
        modules: e.g. student and predictor; a frozen parameter is left out.
        weight_decay_on: ``all`` (the published data2vec 2 and audio runs, whose exemptions never
            took effect) or ``matrices`` (no decay for biases, norms, layer scales and extra tokens;
            data2vec 1 vision, whose mask vector decays).
        lr_scales: learning-rate factor by prefix of the parameter's name; the longest matching
            prefix counts.

    Returns:
        Groups for a torch optimizer with the keys ``params``, ``lr_scale`` and ``decays`` (bool).
    """
    assert weight_decay_on in ("all", "matrices"), (
        f"weight_decay_on is {weight_decay_on!r}: all or matrices"
    )
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                flat = parameter.ndim < 2 and not name.endswith(
                    "mask_vector"
                )  # three axes in BEiT: decays
                exempt = weight_decay_on == "matrices" and (
                    flat or name.rpartition(".")[2] == "extra"
                )
                groups.setdefault((_scale(name, lr_scales or {}), not exempt), []).append(parameter)
    return [
        {"params": params, "lr_scale": scale, "decays": decays}
        for (scale, decays), params in groups.items()
    ]


def _scale(name: str, scales: Mapping[str, float]) -> float:
    matching = [prefix for prefix in scales if name.startswith(prefix)]
    return scales[max(matching, key=len)] if matching else 1.0


def set_rates(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float, eps: float) -> None:
    """Write this step's learning rate, weight decay and eps into every group; nothing is left to
    the optimizer's memory."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        group["weight_decay"] = weight_decay if group["decays"] else 0.0
        group["eps"] = eps


def fairseq_eps(eps: float, beta2: float, update: int) -> float:
    """The eps that makes torch's AdamW equal to fairseq's Adam at update number ``update`` (from
    1).

    fairseq adds eps to ``sqrt(v)`` before the bias correction, torch after: ``eps / sqrt(1 -
    beta2^t)``."""
    return eps / (1 - beta2**update) ** 0.5


def scale_gradients(parameters: Iterable[Tensor], factor: Tensor | float) -> None:
    """Multiply every gradient in place; ``factor`` may live on the device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor)
