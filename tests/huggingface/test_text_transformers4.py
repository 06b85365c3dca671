"""Text weights to and from transformers 4.37; see test_audio_transformers4.py for the Python that
it needs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

import d2v_pretrain
from tests.huggingface.test_text import (
    CROSS,
    HEADS,
    SIZES,
    agree,
    labels,
    padded,
    randomised,
    shaped,
)

PYTHON = os.environ.get("TRANSFORMERS4_PYTHON")
THEIRS = Path(__file__).with_name("transformers4.py")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON, reason="TRANSFORMERS4_PYTHON names no Python with transformers 4.37"
    ),
]


def test_both_directions(tmp_path: Path) -> None:
    asked = {"output_hidden_states": True, "output_attentions": True}
    cases, models = {}, {}
    for head in HEADS:
        for tied in (False, True) if head.endswith("LM") else (True,):
            settings = {"tie_word_embeddings": tied} | (CROSS if head == "ForCausalLM" else {})
            case, cls = f"{head}{tied}", getattr(d2v_pretrain, f"Data2VecText{head}")
            models[case] = randomised(cls(d2v_pretrain.Data2VecTextConfig(**SIZES, **settings)))
            if not tied:  # there it is one bias
                models[case].lm_head.bias.data.copy_(models[case].lm_head.decoder.bias)
            models[case].save_pretrained(tmp_path / case)
            given = (
                shaped(head, padded("right")) | ({} if head == "Model" else labels(head)) | asked
            )
            if head == "ForCausalLM":
                given["encoder_hidden_states"] = torch.randn(3, 5, 32, dtype=torch.float64)
            cases[case] = (cls.__name__, given)
            bare = {k: v for k, v in given.items() if "labels" not in k} | {
                "head_mask": torch.rand(3, 4)
            }
            cases[f"{case}-bare"] = (cls.__name__, bare)
            models[f"{case}-bare"] = models[case]
            models[case].save_pretrained(tmp_path / f"{case}-bare")
    torch.save(cases, tmp_path / "cases.pt")
    assert PYTHON is not None
    subprocess.run([PYTHON, "-W", "ignore", str(THEIRS), str(tmp_path)], check=True)
    outputs = torch.load(tmp_path / "outputs.pt")
    for case, model in models.items():
        again, told = type(model).from_pretrained(tmp_path / f"{case}-4", output_loading_info=True)
        assert not any(told.values())
        assert all(
            torch.equal(tensor, model.state_dict()[name])
            for name, tensor in again.state_dict().items()
        )
        mine = again.double()(**cases[case][1])
        if case.startswith("ForCausalLM") and mine.loss is not None:
            # 5 computes the causal loss in float32, as ours do; 4 in the model's precision.
            their = outputs[case]["loss"]
            torch.testing.assert_close(mine.loss, their, rtol=1e-6, atol=0, check_dtype=False)
            outputs[case]["loss"] = mine.loss
        agree(mine, outputs[case], 1e-12)
        if case == "ForCausalLMTrue-bare":
            torch.testing.assert_close(
                mine.past_key_values, outputs[case]["past_key_values"], atol=1e-12, rtol=0
            )
