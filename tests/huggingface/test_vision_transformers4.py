"""Vision weights to and from transformers 4.37; needs a Python that has it, see
``test_audio_transformers4.py``."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from d2v_pretrain import huggingface as family
from tests.huggingface.audio_cases import agree
from tests.huggingface.vision_cases import BIASES, SIZES, chosen, images, randomised

SCRIPT = Path(__file__).with_name("transformers4.py")
PYTHON = os.environ.get("TRANSFORMERS4_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON, reason="TRANSFORMERS4_PYTHON names no Python with transformers 4.37"
    ),
]
LABELS = torch.arange(2 * 32 * 32).view(2, 32, 32) % 5
# Case: class, settings, arguments.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "masked": ("Model", {"use_mask_token": True, **BIASES}, {"bool_masked_pos": chosen()}),
    "absolute": (
        "Model",
        {"use_absolute_position_embeddings": True, "use_mean_pooling": False},
        {},
    ),
    "not square": ("Model", {"image_size": [16, 40], **BIASES}, {"pixel_values": images(16, 40)}),
    "some heads": (
        "ForSemanticSegmentation",
        {},
        {"head_mask": torch.rand(4, 4, dtype=torch.float64)},
    ),
    "classes": ("ForImageClassification", BIASES, {"labels": torch.tensor([1, 2])}),
    "no layer scale": (
        "ForImageClassification",
        {"use_mean_pooling": False, "layer_scale_init_value": 0.0},
        {},
    ),
    "pixels": (
        "ForSemanticSegmentation",
        {"auxiliary_concat_input": True, **BIASES},
        {"labels": LABELS},
    ),
    "three features": (
        "ForSemanticSegmentation",
        {"out_indices": [0, 1, 2, 3], "use_auxiliary_head": False},
        {},
    ),
}


def test_both_directions(tmp_path: Path) -> None:
    asked = {"pixel_values": images(), "output_hidden_states": True, "output_attentions": True}
    cases, models = {}, {}
    for case, (head, settings, arguments) in CASES.items():
        cls = getattr(family, f"Data2VecVision{head}")
        models[case] = randomised(cls(family.Data2VecVisionConfig(**SIZES | settings)))
        models[case].save_pretrained(
            tmp_path / case, **({"dialect": 4} if "Segmentation" in head else {})
        )
        cases[case] = (cls.__name__, asked | arguments)
    torch.save(cases, tmp_path / "cases.pt")
    assert PYTHON is not None
    subprocess.run([PYTHON, "-W", "ignore", str(SCRIPT), str(tmp_path)], check=True)
    outputs = torch.load(tmp_path / "outputs.pt")
    for case, model in models.items():
        again, told = type(model).from_pretrained(tmp_path / f"{case}-4", output_loading_info=True)
        assert not any(told.values())
        assert all(
            torch.equal(tensor, model.state_dict()[name])
            for name, tensor in again.state_dict().items()
        )
        agree(again.double()(**cases[case][1]), outputs[case], 1e-12)
