"""probe.py: at the end of a run, and only there unless asked; with and without labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from d2v_pretrain.evaluation import probe as evaluate
from d2v_pretrain.training.callbacks.health import Health
from d2v_pretrain.training.callbacks.metrics import MetricsLog, lines
from d2v_pretrain.training.callbacks.probe import Probe

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*:FutureWarning"
)  # Lightning 2.6 with torch 2.11


def test_a_finished_run_prints_the_table_and_writes_the_file(
    fit: Callable[..., Trainer],
    toy: type,
    data: type,
    make_encoder: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = toy()
    fit(module, 3, [MetricsLog(1), Probe(tmp_path, partial(make_encoder, 5))], data(tasks=2))
    written = json.loads((tmp_path / "probe.json").read_text())
    task = data().probe_tasks()[0]
    again = evaluate.probe(
        task, {"random": make_encoder(5), "pretrained": module.objective.teacher.encoder}
    )
    for metric in ("few_shot", "linear", "knn"):
        assert written[metric] == again[metric] and set(written[metric]) == {
            "floor",
            "random",
            "pretrained",
        }
    assert written["data"] == "toy tokens: 60 sequences" and written["step"] == 3
    assert [other["task"] for other in written["others"]] == ["halves1"]
    printed = capsys.readouterr().out
    assert "pretrained encoder" in printed and "random encoder (" in printed.replace("\n", " ")


def test_a_run_without_labels_reports_its_health(
    fit: Callable[..., Trainer], toy: type, data: type, make_encoder: Callable, tmp_path: Path
) -> None:
    fit(
        toy(),
        3,
        [MetricsLog(1), Health(), Probe(tmp_path, partial(make_encoder, 5), samples=40)],
        data(tasks=0),
    )
    written = json.loads((tmp_path / "probe.json").read_text())
    assert set(written["effective_rank"]) == {"random", "pretrained"}
    assert written["target_position_std"] > 0.5 and "few_shot" not in written


def test_a_run_that_was_stopped_is_not_probed(
    fit: Callable[..., Trainer], toy: type, make_encoder: Callable, tmp_path: Path
) -> None:
    fit(toy(), 100, [Probe(tmp_path, partial(make_encoder, 5))], max_time={"seconds": 0})
    assert not (tmp_path / "probe.json").exists()


def test_probes_on_the_way_are_metrics_and_change_no_random_number(
    fit: Callable[..., Trainer], toy: type, make_encoder: Callable, tmp_path: Path
) -> None:
    fit(toy(), 4, [MetricsLog(1), Probe(tmp_path, partial(make_encoder, 5), every=2)])
    found = [
        line["step"] for line in lines(tmp_path / "metrics.jsonl") if "probe_halves_knn" in line
    ]
    assert found == [2, 4]


def test_making_the_random_encoder_leaves_the_generator_alone(
    toy: type, make_encoder: Callable, tmp_path: Path
) -> None:
    before = torch.get_rng_state()
    module = toy()
    torch.set_rng_state(before)
    Probe(tmp_path, partial(make_encoder, 5))._random(module)
    assert torch.equal(before, torch.get_rng_state())
