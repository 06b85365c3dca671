"""``init_from=`` as a run takes it: student and teacher both, schedules from the beginning, one
line of provenance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from d2v_pretrain import export
from d2v_pretrain.checkpoint.saved_run import Run
from d2v_pretrain.config.compose import check, load
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.training.run import build_module
from tests.weights.conftest import RUNS, SMALL

Runs = Callable[[str], Run]


@pytest.mark.parametrize("kind", ["checkpoint", "bundle", "hf"])
def test_student_and_teacher_start_from_it(
    kind: str, trained: Runs, tmp_path: Path, capsys
) -> None:
    run = trained("text1")
    path = (
        run.file
        if kind == "checkpoint"
        else export.export(run, "student", kind, str(tmp_path / "out"))
    )
    cfg = load([*RUNS["text1"], *SMALL, f"init_from={path}"])
    check(cfg)
    module = build_module(cfg)
    wanted = run.encoder("student").state_dict()
    for encoder in (module.objective.student, module.objective.teacher.encoder):
        assert all(torch.equal(value, wanted[key]) for key, value in encoder.state_dict().items())
    assert module.updates == 0 and module.objective.teacher.decay(0) == cfg.ema.start
    assert f"weights from {path}" in capsys.readouterr().out.replace("\n", "")
    again = build_module(cfg, run.file)  # a run that goes on
    assert not torch.equal(
        again.objective.student.blocks[0].fc1.weight, wanted["blocks.0.fc1.weight"]
    )


def test_a_fine_tuned_objective_over_another_ones_encoder(trained: Runs, tmp_path: Path) -> None:
    """data2vec 1's text encoder, exported for transformers, starts a pretraining by data2vec 2."""
    folder = export.export(trained("text1"), "teacher", "hf", str(tmp_path / "out"))
    module = build_module(load([*RUNS["text2"], *SMALL, f"init_from={folder}"]))
    wanted = trained("text1").encoder("teacher").state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in module.objective.student.state_dict().items())


@pytest.mark.parametrize(
    "given, sentence",
    [
        ("nowhere", "is not a file or folder"),
        ("folder", "is no folder with a model"),
        ("text", "cannot be read as a"),
    ],
)
def test_wrong_paths(given: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("nothing")
    cfg = load([*RUNS["text1"], *SMALL, f"init_from={tmp_path / given}"])
    with pytest.raises(ConfigError, match=sentence):
        check(cfg)
        build_module(cfg)
