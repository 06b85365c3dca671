"""``hidden_act``: the names of transformers' table, and functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import d2v_pretrain
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface.activations import ACTIVATIONS

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
    "max_position_embeddings": 20,
}
IDS = torch.arange(2, 14).view(2, 6)


def doubled(x: Tensor) -> Tensor:
    return 2 * x


def model(hidden_act: Any) -> Any:
    torch.manual_seed(0)
    config = d2v_pretrain.Data2VecTextConfig(**SIZES, hidden_act=hidden_act)
    return d2v_pretrain.Data2VecTextModel(config).eval()


def test_values_and_gradients_are_theirs() -> None:
    table = pytest.importorskip("transformers.activations").ACT2FN
    names = sorted(set(ACTIVATIONS) & set(table))
    assert len(names) >= 18 and {"silu", "swish", "tanh", "quick_gelu", "mish"} <= set(names)
    for name in names:
        results = []
        for function in (ACTIVATIONS[name], table[name]):
            x = torch.linspace(-12, 12, 481, dtype=torch.float64, requires_grad=True)
            y = function(x)
            results.append((y.detach(), *torch.autograd.grad(y.sum(), x)))
        for mine, their in zip(*results, strict=True):
            torch.testing.assert_close(mine, their, atol=1e-7, rtol=0, msg=name)


def test_what_is_left_out_has_parameters() -> None:
    activations = pytest.importorskip("transformers.activations")
    assert set(activations.ACT2CLS) - set(ACTIVATIONS) <= {"prelu", "xielu"}
    assert list(activations.ACT2FN["prelu"].parameters())


@pytest.mark.parametrize("name", ["silu", "tanh", "quick_gelu"])
def test_a_model_computes_with_it(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    mine = model(name)
    mine.save_pretrained(tmp_path)
    their = transformers.Data2VecTextModel.from_pretrained(tmp_path).eval()
    assert their.config.hidden_act == name
    with torch.no_grad():
        torch.testing.assert_close(mine(IDS)[0], their(IDS)[0], atol=1e-5, rtol=0)
        assert not torch.allclose(mine(IDS)[0], model("gelu")(IDS)[0], atol=1e-4)


@pytest.mark.parametrize("function", [torch.tanh, nn.Tanh()])
def test_a_function_stands_for_its_name(function: Any) -> None:
    assert torch.equal(model(function)(IDS)[0], model("tanh")(IDS)[0])


def test_a_function_also_in_the_stem_of_audio() -> None:
    sizes = {k: v for k, v in SIZES.items() if k != "max_position_embeddings"}
    conv = {"conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3]}
    states = []
    for act in (torch.tanh, "tanh"):
        torch.manual_seed(0)
        config = d2v_pretrain.Data2VecAudioConfig(**sizes, **conv, feat_extract_activation=act)
        states.append(d2v_pretrain.Data2VecAudioModel(config).eval()(torch.ones(1, 400))[0])
    assert torch.equal(*states)


def test_a_function_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"hidden_act=<function doubled.* is a function"):
        model(doubled).save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_misspelt_name() -> None:
    with pytest.raises(ConfigError, match=r"hidden_act=quickgelu .* mean quick_gelu"):
        model("quickgelu")
    with pytest.raises(ConfigError, match="hidden_act=3 must be of type str or"):
        model(3)
