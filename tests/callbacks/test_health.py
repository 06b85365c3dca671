"""health.py: each symptom is named once, health is left alone, a non-finite loss stops before anything is saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from d2v_pretrain.callbacks.health import Health
from d2v_pretrain.callbacks.metrics import MetricsLog, lines
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.evaluate import features
from d2v_pretrain.probe import effective_rank

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning 2.6 with torch 2.11


@pytest.mark.parametrize(
    ("targets", "said"),
    [("healthy", []), ("position", ["depend on the position"]), ("constant", ["collapsed to a constant"])],
)
def test_collapse_is_named_once_and_only_after_the_first_steps(
    fit: Callable[..., Trainer], toy: type, caplog: pytest.LogCaptureFixture, targets: str, said: list[str]
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


def test_effective_rank_now_and_then(fit: Callable[..., Trainer], toy: type, data: type, tmp_path: Path) -> None:
    module = toy()
    fit(module, 6, [MetricsLog(1), Health(rank_every=3, samples=40)])
    ranks = {
        line["step"]: line["effective_rank"] for line in lines(tmp_path / "metrics.jsonl") if "effective_rank" in line
    }
    assert list(ranks) == [3, 6]
    expected = effective_rank(features(module.objective.teacher.encoder, data().health_batches(40))[0])
    assert ranks[6] == pytest.approx(expected)


def test_a_non_finite_loss_between_logged_steps_stops_with_the_right_samples(
    fit: Callable[..., Trainer], toy: type
) -> None:
    # Batch 5 (ids 20 to 23) is trained in step 6, logged steps are 1 and 10: afterwards every loss is nan.
    with pytest.raises(ConfigError, match=r"loss=nan is not finite: .* step 6, of samples 20, 21, 22, 23; lower lr"):
        fit(toy(nan_id=21), 20, [MetricsLog(10), Health()])


def test_nothing_is_saved_after_a_non_finite_loss(fit: Callable[..., Trainer], toy: type, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    with pytest.raises(ConfigError, match="of samples 20, 21, 22, 23"):
        fit(toy(nan_id=21), 20, [MetricsLog(100), Health(), saver], enable_checkpointing=True)
    saved = sorted(path.name for path in tmp_path.glob("*.ckpt"))
    assert saved == ["step=2.ckpt", "step=4.ckpt"]
    assert torch.load(tmp_path / "step=4.ckpt", weights_only=True)["state_dict"]["number"].isfinite()
