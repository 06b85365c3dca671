"""health.py: each symptom is named once, health is left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from d2v_pretrain.evaluation.classifiers import effective_rank
from d2v_pretrain.evaluation.probe import features
from d2v_pretrain.training.callbacks.health import Health
from d2v_pretrain.training.callbacks.metrics import MetricsLog, lines

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*:FutureWarning"
)  # Lightning 2.6 with torch 2.11


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ("healthy", []),
        ("position", ["depend on the position"]),
        ("constant", ["collapsed to a constant"]),
    ],
)
def test_collapse_is_named_once_and_only_after_the_first_steps(
    fit: Callable[..., Trainer],
    toy: type,
    caplog: pytest.LogCaptureFixture,
    targets: str,
    said: list[str],
) -> None:
    fit(toy(targets), 10, [MetricsLog(1), Health(after=5)])
    spoken = [record.getMessage() for record in caplog.records if record.name.endswith("health")]
    assert len(spoken) == len(said)
    assert all(words in text and text.startswith("Step 5: ") for words, text in zip(said, spoken))


def test_the_spread_overall_and_at_a_fixed_position_is_logged(
    fit: Callable[..., Trainer], toy: type, tmp_path: Path
) -> None:
    fit(toy("position"), 2, [MetricsLog(1), Health()])
    last = lines(tmp_path / "metrics.jsonl")[-1]
    assert last["target_std"] > 0.5 and last["target_position_std"] < 0.02
    assert last["pred_std"] > 0.5 and last["pred_position_std"] > 0.5


def test_effective_rank_now_and_then(
    fit: Callable[..., Trainer], toy: type, data: type, tmp_path: Path
) -> None:
    module = toy()
    fit(module, 6, [MetricsLog(1), Health(rank_every=3, samples=40)])
    ranks = {
        line["step"]: line["effective_rank"]
        for line in lines(tmp_path / "metrics.jsonl")
        if "effective_rank" in line
    }
    assert list(ranks) == [3, 6]
    expected = effective_rank(
        features(module.objective.teacher.encoder, data().health_batches(40))[0]
    )
    assert ranks[6] == pytest.approx(expected)
