"""Runs as they lie on disk, without the training: a checkpoint of a tiny encoder whose every tensor
is random."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from d2v_pretrain.checkpoint import file as checkpoint
from d2v_pretrain.checkpoint.saved_run import Run, find
from d2v_pretrain.config.compose import load
from d2v_pretrain.training.run import build_module

SMALL = [
    "encoder.width=32",
    "encoder.depth=2",
    "encoder.heads=2",
    "objective.targets.top_k=2",
    "steps=7",
    "probe=null",
]
# Published architectures at a tiny size; the last two are the small recipes' own.
RUNS = {
    "audio1": ["modality=audio", "objective=data2vec1", "architecture=audio_data2vec1"],
    "audio2": ["modality=audio", "architecture=audio_data2vec2"],
    "text1": [
        "modality=text",
        "objective=data2vec1",
        "architecture=text_data2vec1",
        "transform.vocab_size=300",
    ],
    "text2": ["modality=text", "architecture=text_data2vec2", "transform.vocab_size=300"],
    "vision1": ["modality=vision", "objective=data2vec1", "architecture=vision_data2vec1"],
    "vision2": ["modality=vision", "architecture=vision_data2vec2", "transform.standardise=false"],
    "small_text2": ["modality=text", "transform.vocab_size=300"],
    "small_vision2": ["modality=vision"],
}


def make(folder: Path, name: str) -> Run:
    """Write ``folder/runs/<name>`` as training leaves it."""
    run = folder / "runs" / name
    cfg = load([*RUNS[name], *SMALL, f"name={name}", f"folder={run}"])
    module = build_module(cfg)
    draw = torch.Generator().manual_seed(len(name))
    state = {
        k: v + 0.1 * torch.randn(v.shape, generator=draw) for k, v in module.state_dict().items()
    }
    content = {
        "state_dict": state,
        "global_step": 7,
        "position": {},
        "config": OmegaConf.to_yaml(cfg, resolve=True),
    }
    checkpoint.write(content, run / "checkpoints" / "last.ckpt")
    environment = {
        "command": ["train.py", "data.root=/secret/place/dataset"],
        "packages": {"torch": "2"},
        "gpus": [],
    }
    (run / "environment.json").write_text(
        json.dumps([environment | {"commit": "abc123", "system": "Linux"}])
    )
    return find(str(run))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """A run of ``RUNS`` by name, made once."""
    folder, made = tmp_path_factory.mktemp("trained"), {}

    def get(name: str) -> Run:
        if name not in made:
            made[name] = make(folder, name)
        return made[name]

    return get
