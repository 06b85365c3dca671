"""Small audio models of Hugging Face with every tensor random, ours from their files, and their
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
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 20,
    "conv_dim": [24, 24, 24],
    "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 2, 2],
    "num_conv_pos_embeddings": 3,
    "conv_pos_kernel_size": 5,
    "num_conv_pos_embedding_groups": 4,
    "tdnn_dim": [16, 16, 24],
    "tdnn_kernel": [5, 3, 1],
    "tdnn_dilation": [1, 2, 1],
    "xvector_output_dim": 12,
    "classifier_proj_size": 10,
    "num_labels": 5,
}
NO_DROPS = dict.fromkeys(
    (
        "hidden_dropout",
        "activation_dropout",
        "attention_dropout",
        "feat_proj_dropout",
        "final_dropout",
        "layerdrop",
    ),
    0.0,
)
FRAME, HOP = 40, 20  # samples that one frame sees, and from one to the next
LENGTHS = (1200, 900, 501)


def randomised(model: nn.Module, seed: int = 0) -> Any:
    """The model in eval mode, every parameter anew; norms around 1, so that signals neither vanish
    nor explode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(centre, 0.2, generator=generator)
    return model.eval()


def theirs(name: str, **settings: Any) -> Any:
    """Hugging Face's model ``Data2VecAudio<name>``, tiny and random."""
    config = transformers.Data2VecAudioConfig(**SIZES | settings)
    config._attn_implementation = "eager"
    return randomised(getattr(transformers, f"Data2VecAudio{name}")(config))


def ours(name: str, model: Any, directory: Path, **overrides: Any) -> Any:
    """Our class of that name, read from the directory that their model was saved to."""
    model.save_pretrained(directory)
    return getattr(family, f"Data2VecAudio{name}").from_pretrained(directory, **overrides)


def waves(
    lengths: tuple[int, ...] = LENGTHS, seed: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """(B, S) noise and its attention mask."""
    wave = torch.randn(
        len(lengths), max(lengths), generator=torch.Generator().manual_seed(seed), dtype=dtype
    )
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return wave * mask, mask


def frames(length: int) -> int:
    """Frames of so many samples, counted."""
    return len(range(0, length - FRAME + 1, HOP))


def agree(mine: Any, their: Any, tolerance: float) -> None:
    """Two outputs: the same fields, in the same order, with equal values."""
    assert list(mine.keys()) == list(their.keys())
    for name in mine:
        torch.testing.assert_close(
            mine[name],
            their[name],
            atol=tolerance,
            rtol=tolerance,
            msg=lambda text, name=name: f"{name}: {text}",
        )
