"""Audio weights to and from transformers 4.37, the version of the documentation; needs a Python
that has it.

``TRANSFORMERS4_PYTHON`` names that Python; its torch may be the one used here::

    pip install --no-deps --target OLD transformers==4.37.2 tokenizers==0.15.2
    'huggingface_hub<0.30' numpy==1.26.4 printf '#!/bin/sh\\nPYTHONPATH=OLD exec .venv/bin/python
    "$@"\\n' > python4 && chmod +x python4
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from d2v_pretrain import huggingface as family
from tests.huggingface.audio_cases import SIZES, agree, randomised, waves
from tests.huggingface.test_audio import CTC_LABELS, HEADS

SCRIPT = Path(__file__).with_name("transformers4.py")
PYTHON = os.environ.get("TRANSFORMERS4_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON, reason="TRANSFORMERS4_PYTHON names no Python with transformers 4.37"
    ),
]


def test_both_directions(tmp_path: Path) -> None:
    wave, mask = waves(dtype=torch.float64)
    asked = {"output_hidden_states": True, "output_attentions": True}
    cases, models = {}, {}
    for head in ("Model", *HEADS):
        for weighted in (False, True):
            settings = {
                "use_weighted_layer_sum": weighted,
                "add_adapter": head == "Model" and weighted,
            }
            case, cls = f"{head}{weighted}", getattr(family, f"Data2VecAudio{head}")
            models[case] = randomised(cls(family.Data2VecAudioConfig(**SIZES, **settings)))
            models[case].save_pretrained(tmp_path / case)
            labels = (
                CTC_LABELS.masked_fill(CTC_LABELS == 0, -100)
                if head == "ForCTC"
                else HEADS.get(head)
            )
            arguments = {"input_values": wave, "attention_mask": mask, **asked}
            cases[case] = (
                cls.__name__,
                arguments if labels is None else arguments | {"labels": labels},
            )
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
