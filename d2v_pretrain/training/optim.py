"""Parameter groups and what happens between backward and the optimizer step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from d2v_pretrain.training.internals import multiply_in_place


def parameter_groups(
    modules: Iterable[nn.Module],
    weight_decay_on: str = "matrices",
    lr_scales: Mapping[str, float] | None = None,
) -> list[dict]:
    """Split the trainable parameters by weight decay and learning-rate scale.

    Args:
        modules: e.g. student and predictor; frozen parameters are left out.
        weight_decay_on: ``all`` (published data2vec 2 and audio runs; their code meant to exempt
            some parameters, without effect) or ``matrices`` (no decay for biases, norms, layer
            scales and extra tokens; data2vec 1 vision, whose mask vector decays).
        lr_scales: factor on the learning rate by prefix of the parameter's name; the longest
            matching prefix counts.

    Returns:
        Groups for a torch optimizer with the keys ``params``, ``lr_scale`` and ``decays`` (bool).
    """
    assert weight_decay_on in ("all", "matrices"), f"unknown weight_decay_on {weight_decay_on!r}"
    scales = {"": 1.0} | dict(lr_scales or {})
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for module in modules:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            # BEiT's mask vector has three axes, so it counts as a matrix there.
            flat = parameter.ndim < 2 and not name.endswith("mask_vector")
            exempt = flat or name.rpartition(".")[2] == "extra"
            scale = scales[max(filter(name.startswith, scales), key=len)]
            decays = weight_decay_on == "all" or not exempt
            groups.setdefault((scale, decays), []).append(parameter)
    return [
        {"params": params, "lr_scale": scale, "decays": decays}
        for (scale, decays), params in groups.items()
    ]


def set_rates(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float, eps: float) -> None:
    """Set lr, weight decay and eps of every group for this step.

    They are recomputed each step, so their values in checkpoints do not matter.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        group["weight_decay"] = weight_decay if group["decays"] else 0.0
        group["eps"] = eps


def fairseq_eps(eps: float, beta2: float, update: int) -> float:
    """The eps that makes torch's AdamW equal to fairseq's Adam at step number ``update`` (from 1).

    fairseq adds eps to ``sqrt(v)`` before the bias correction, torch after it, which makes a
    factor of ``1 / sqrt(1 - beta2^update)``.
    """
    return eps / (1 - beta2**update) ** 0.5


class AdamSteps:
    """The number of steps that an Adam has taken, known on the host.

    Skipped steps are not counted (as with torch's ``GradScaler`` and in fairseq): they leave Adam's
    averages as they are, so its bias correction must not count them either. The number lies on the
    device. It is copied after each step and read before the next one, so that the host waits for
    no work that it has just given to the device.
    """

    def __init__(self) -> None:
        self.source: Tensor | None = None  # the tensor of the optimizer that was copied
        self.copy = torch.zeros(())
        self.copied: torch.cuda.Event | None = None

    def read(self, optimizer: torch.optim.Optimizer) -> int:
        """The steps taken so far; 0 before the first."""
        source = _step_of(optimizer)
        if source is None or source is not self.source:  # none yet, or loaded from a checkpoint
            return 0 if source is None else int(source)
        if self.copied is not None:
            self.copied.synchronize()
        return int(self.copy)

    def note(self, optimizer: torch.optim.Optimizer) -> None:
        """Start to copy the number, after a step."""
        self.source = _step_of(optimizer)
        if self.source is None or self.source.device.type != "cuda":
            self.copy = torch.zeros(()) if self.source is None else self.source
            return
        self.copy = torch.empty_like(self.source, device="cpu", pin_memory=True)
        self.copy.copy_(self.source, non_blocking=True)
        self.copied = torch.cuda.Event()
        self.copied.record()


def _step_of(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """Adam's own count of its steps, which is the same for all parameters."""
    return next((state["step"] for state in optimizer.state.values() if "step" in state), None)


def scale_gradients(parameters: Iterable[Tensor], factor: Tensor | float) -> None:
    """Multiply every gradient in place; ``factor`` may live on the device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients:
        multiply_in_place(gradients, factor)
