"""Parameter groups, rates, and fairseq's Adam written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from d2v_pretrain.models.block import Block
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.models.positions import RelativeBias
from d2v_pretrain.models.stems import VisionStem
from d2v_pretrain.objective.predictors import Head
from d2v_pretrain.training.optim import fairseq_eps, parameter_groups, scale_gradients, set_rates


def vision_modules() -> list[nn.Module]:
    def block(drop_path: float) -> Block:
        return Block(8, 2, norm_first=True, layer_scale=0.1, key_bias=False, drop_path=drop_path)

    stem = VisionStem(8, 4, masked=True)
    student = Encoder(
        stem,
        block,
        8,
        2,
        bias=RelativeBias(2, (2, 2)),
        extra_tokens=1,
        input_norm=False,
        final_norm=True,
    )
    return [student, Head(8)]


def names_of(groups: list[dict], modules: list[nn.Module], decays: bool) -> set[str]:
    table = {id(p): name for module in modules for name, p in module.named_parameters()}
    return {table[id(p)] for group in groups if group["decays"] == decays for p in group["params"]}


def test_matrices_decay_as_in_beit() -> None:
    """BEiT exempts one-dimensional parameters and the CLS token; its bias table and its mask token
    decay."""
    modules = vision_modules()
    groups = parameter_groups(modules, "matrices")
    linear = {"attention.qkv.weight", "attention.out.weight", "fc1.weight", "fc2.weight"}
    expected = {f"blocks.{i}.{name}" for i in range(2) for name in linear}
    expected |= {"stem.projection.weight", "stem.mask_vector", "bias.table", "projection.0.weight"}
    assert names_of(groups, modules, True) == expected
    everything = {name for module in modules for name, _ in module.named_parameters()}
    assert names_of(groups, modules, False) == everything - expected


def test_all_decay_in_one_group_and_frozen_parameters_are_left_out() -> None:
    modules = vision_modules()
    modules[0].get_parameter("bias.table").requires_grad_(False)
    (group,) = parameter_groups(modules, "all")
    assert group["decays"] and group["lr_scale"] == 1.0
    assert len(group["params"]) == sum(1 for module in modules for p in module.parameters()) - 1


def test_the_longest_matching_prefix_sets_the_rate() -> None:
    modules = vision_modules()
    groups = parameter_groups(modules, "all", {"blocks.": 0.5, "blocks.1.": 0.1, "stem": 0.0})
    table = {id(p): name for module in modules for name, p in module.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            name = table[id(parameter)]
            wanted = (
                0.1 if name.startswith("blocks.1.") else 0.5 if name.startswith("blocks.") else 0.0
            )
            assert group["lr_scale"] == (wanted if name.startswith(("blocks.", "stem")) else 1.0), (
                name
            )


def test_an_unknown_decay_is_refused() -> None:
    with pytest.raises(AssertionError, match="unknown weight_decay_on 'some'"):
        parameter_groups([nn.Linear(2, 2)], "some")


def test_set_rates_writes_every_group() -> None:
    groups = parameter_groups([nn.Linear(3, 3)], "matrices", {"bias": 0.25})
    optimizer = torch.optim.AdamW(groups, lr=9.0, weight_decay=9.0, eps=9.0)
    set_rates(optimizer, 2.0, 0.5, 1e-3)
    written = {
        (g["lr_scale"], g["lr"], g["weight_decay"], g["eps"]) for g in optimizer.param_groups
    }
    assert written == {(1.0, 2.0, 0.5, 1e-3), (0.25, 0.5, 0.0, 1e-3)}


def fairseq_adam(
    p: Tensor, grads: list[Tensor], lr: float, betas: tuple[float, float], eps: float, wd: float
) -> Tensor:
    """fairseq's formula: eps beside sqrt(v), both bias corrections in the step size, decay
    first."""
    (beta1, beta2), m, v = betas, torch.zeros_like(p), torch.zeros_like(p)
    for t, g in enumerate(grads, start=1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        p = p - lr * wd * p
        p = p - lr * (1 - beta2**t) ** 0.5 / (1 - beta1**t) * m / (v.sqrt() + eps)
    return p


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_adamw_with_fairseq_eps_is_fairseq_adam(scale: float) -> None:
    """Gradients as small as eps itself are where the place of eps shows."""
    torch.manual_seed(0)
    grads = [scale * torch.randn(5, 7, dtype=torch.float64) for _ in range(20)]
    start, lr, beta1, beta2, eps, decay = (
        torch.randn(5, 7, dtype=torch.float64),
        1e-2,
        0.9,
        0.98,
        1e-6,
        0.1,
    )
    parameter = nn.Parameter(start.clone())
    groups: list[dict] = [{"params": [parameter], "lr_scale": 1.0, "decays": True}]
    optimizer = torch.optim.AdamW(groups, betas=(beta1, beta2))
    for update, grad in enumerate(grads, start=1):
        parameter.grad = grad
        set_rates(optimizer, lr, decay, fairseq_eps(eps, beta2, update))
        optimizer.step()
    expected = fairseq_adam(start, grads, lr, (beta1, beta2), eps, decay)
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=1e-14)


def test_the_first_fairseq_eps_is_seven_times_eps() -> None:
    assert fairseq_eps(1.0, 0.98, 1) == pytest.approx(50**0.5)
    assert fairseq_eps(1.0, 0.98, 10_000) == pytest.approx(1.0)


def test_scale_gradients_skips_parameters_without() -> None:
    with_gradient, without = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    with_gradient.grad = torch.tensor([1.0, 2.0, 3.0])
    scale_gradients([with_gradient, without], torch.tensor(0.5))
    assert with_gradient.grad.tolist() == [0.5, 1.0, 1.5] and without.grad is None
    scale_gradients([without], 2.0)
