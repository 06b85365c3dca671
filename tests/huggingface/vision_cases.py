"""Small vision models of Hugging Face with every tensor random, ours from their files, and their
common inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from d2v_pretrain import huggingface as family

transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
    "out_indices": [1, 2, 3, 4],
    "auxiliary_channels": 16,
}
BIASES = {"use_shared_relative_position_bias": True, "use_relative_position_bias": True}
PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["fp64", "fp32"]
)


def randomised(model: nn.Module, seed: int = 0) -> Any:
    """The model in eval mode, every parameter and BatchNorm statistic anew: factors and variances
    around 1, convolutions such that signals neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            tensor.fill_(7)
        elif (
            ("norm" in name and name.endswith("weight"))
            or name.endswith("running_var")
            or "lambda" in name
        ):
            tensor.uniform_(0.5, 1.5, generator=generator)
        else:
            spread = tensor[0].numel() ** -0.5 if tensor.ndim == 4 else 0.2
            tensor.normal_(0.0, spread, generator=generator)
    return model.eval()


def theirs(name: str, **settings: Any) -> Any:
    """Hugging Face's model ``Data2VecVision<name>``, tiny and random."""
    config = transformers.Data2VecVisionConfig(**SIZES | settings)
    config._attn_implementation = "eager"
    return randomised(getattr(transformers, f"Data2VecVision{name}")(config))


def ours(name: str, model: Any, directory: Path, **overrides: Any) -> Any:
    """Our class of that name, read from the directory that their model was saved to."""
    model.save_pretrained(directory)
    return getattr(family, f"Data2VecVision{name}").from_pretrained(directory, **overrides)


def both(
    name: str, directory: Path, dtype: torch.dtype = torch.float64, **settings: Any
) -> tuple[Any, Any]:
    """Ours and theirs with the same weights."""
    model = theirs(name, **settings)
    return ours(name, model, directory).to(dtype), model.to(dtype)


def images(
    height: int = 32, width: int = 32, channels: int = 3, dtype: torch.dtype = torch.float64
) -> Tensor:
    """(2, C, height, width) noise."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, height, width, generator=generator, dtype=torch.float64).to(
        dtype
    )


def chosen(patches: int = 16, share: float = 0.4) -> Tensor:
    """(2, N) bool patches."""
    return torch.rand(2, patches, generator=torch.Generator().manual_seed(2)) < share
