"""One training step against recorded steps of the reference code (tests/fixtures/goldens)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.parity import TOLERANCE, Golden, after_recorded, errors, run

FOLDER = Path(__file__).parent / "fixtures" / "goldens"


@pytest.mark.parametrize("name", ["audio_v1", "text_v1", "image_v2"])
def test_every_recorded_tensor_agrees(name: str) -> None:
    golden = Golden.read(FOLDER / name)
    computed = run(golden)
    table = errors(computed | after_recorded(golden), golden.answers)
    wrong = {k: v for k, v in table.items() if not v <= TOLERANCE[k.split(".")[0]]}
    assert not wrong
    assert {k.split(".")[0] for k in table} == {"out", "grads", "after"}
    assert len(table) > 150


@pytest.mark.parametrize("name", ["audio_v1", "text_v1", "image_v2"])
def test_total_loss_and_gradient_norm(name: str) -> None:
    golden = Golden.read(FOLDER / name)
    computed, config = run(golden), golden.config
    norm = (
        sum(float(t.double().square().sum()) for k, t in computed.items() if k.startswith("grads."))
        ** 0.5
    )
    loss = (
        computed["out.loss_per_position"].sum()
        + computed.get("out.cls_loss_per_row", torch.zeros(1)).sum()
    )
    assert float(loss) == pytest.approx(config["loss_sum"], rel=1e-5)
    assert norm == pytest.approx(config["grad_norm_total"], rel=1e-4)
    assert len(computed["out.loss_per_position"]) == config["sample_size"]


@pytest.mark.parametrize("name", ["audio_v1", "text_v1", "image_v2"])
def test_weights_after_a_whole_step_of_our_own(name: str) -> None:
    """With our own gradients almost every weight agrees to 1e-5.

    Adam's first step is lr g / (|g| + eps): where g is all but zero its rounding moves a weight by
    up to lr = .005, so a handful of weights of some 10^5 may differ by more."""
    golden = Golden.read(FOLDER / name)
    computed = run(golden)
    names = [k for k in golden.answers if k.startswith("after.")]
    difference = torch.cat(
        [(computed[k].float() - golden.answers[k].float()).abs().flatten() for k in names]
    )
    assert difference.max() < 1e-3
    assert (difference > 1e-5).float().mean() < 1e-3


@pytest.mark.parametrize("name", ["audio_v2", "text_v2", "vision_v1"])
def test_blind_folders_run_and_answer_every_question(name: str) -> None:
    """Their answers are not here; what can be checked is that every tensor asked for comes out,
    finite and in shape."""
    golden = Golden.read(FOLDER / "blind" / name)
    computed = run(golden)
    for tensor, (_, *shape) in golden.config["shapes"]["out"].items():
        assert list(computed[f"out.{tensor}"].shape) == shape, tensor
    for parameter, value in golden.init.items():
        if (
            "relative_position_index" not in parameter
        ):  # an integer buffer: never averaged, never written
            assert computed[f"after.{parameter}"].shape == value.shape
    assert all(t.isfinite().all() for t in computed.values())


@pytest.mark.parametrize("name", ["audio_v2", "text_v2", "vision_v1"])
def test_blind_teacher_follows_the_student(name: str) -> None:
    """The closed form teacher + (1 - decay)(student - teacher), or a copy, for every teacher
    tensor."""
    golden = Golden.read(FOLDER / "blind" / name)
    computed, decay = run(golden), golden.config["ema_decay_used"]
    student = {
        k.removeprefix("after.student."): t
        for k, t in computed.items()
        if k.startswith("after.student.")
    }
    twins = {name.removeprefix("blocks."): t for name, t in student.items()}
    checked = 0
    for key, after in computed.items():
        short = key.removeprefix("after.teacher.").removeprefix("blocks.")
        if key.startswith("after.teacher.") and short in twins and after.is_floating_point():
            before = golden.init[key.removeprefix("after.")]
            torch.testing.assert_close(
                after, decay * before + (1 - decay) * twins[short], atol=1e-6, rtol=0
            )
            checked += 1
    assert checked > 30


def test_what_decays_in_vision_is_what_decays_in_training() -> None:
    """BEiT leaves out the CLS token by name (``no_weight_decay``) and what has one axis; its mask
    token and its bias table decay. Adam's first step by hand, for each."""
    golden = Golden.read(FOLDER / "blind" / "vision_v1")
    settings, computed = golden.config["optimizer"], run(golden)
    gradients = {k[6:]: t for k, t in computed.items() if k.startswith("grads.")}
    norm = float(sum(t.double().square().sum() for t in gradients.values()) ** 0.5)
    clip = min(1.0, settings["clip_norm"] / (norm + 1e-6))
    decays = {"cls_token": 0, "norm.bias": 0, "blocks.0.gamma_1": 0, "mask_token": 1}
    decays |= {"rel_pos_bias.relative_position_bias_table": 1, "blocks.1.attn.qkv.weight": 1}
    for name, decay in decays.items():
        before, g = golden.init[f"student.{name}"].double(), gradients[name].double() * clip
        step = g / (g.abs() + settings["eps"])
        expected = before * (1 - decay * settings["lr"] * settings["weight_decay"])
        expected = expected - settings["lr"] * step
        after = computed[f"after.student.{name}"].double()
        torch.testing.assert_close(after, expected, rtol=0, atol=2e-7)


def test_write_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import parity

    target = tmp_path / "out.safetensors"
    monkeypatch.setattr("sys.argv", ["parity", str(FOLDER / "text_v1"), "--write", str(target)])
    assert parity.main() == 0
    assert "0 out of tolerance" in capsys.readouterr().out
    assert {"out.pred", "grads.encoder.regression_head.0.weight"} <= set(load_file(target))
