"""transformers' Trainer on every head: trains, evaluates, predicts, saves and loads, and ends where
it ends with transformers' own class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.huggingface.family_cases import HEADS, inputs, labels, ours, theirs

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

NO_DROPS = {
    "Text": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "Vision": {"drop_path_rate": 0.0},
    "Audio": dict.fromkeys(
        ("hidden_dropout", "attention_dropout", "activation_dropout", "final_dropout"), 0.0
    )
    | {"mask_time_prob": 0.0},
}


def rows(name: str, count: int = 6, labelled: bool = True) -> list[dict[str, Tensor]]:
    batch = inputs(name, count) | (labels(name, count) if labelled else {})
    return [{key: tensor[i] for key, tensor in batch.items()} for i in range(count)]


def trainer(model: Any, name: str, folder: Path, **options: Any) -> Any:
    arguments = transformers.TrainingArguments(
        str(folder),
        num_train_epochs=1,
        per_device_eval_batch_size=3,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        **{"per_device_train_batch_size": 2} | options,
    )
    data = rows(name)
    return transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data)


def flat(predictions: Any) -> list[np.ndarray]:
    return list(predictions) if isinstance(predictions, tuple) else [predictions]


def case(name: str) -> tuple[Any, Any]:
    kind = next(kind for kind in NO_DROPS if name.startswith(kind))
    model = theirs(name, **NO_DROPS[kind])
    return ours(model), model


@pytest.mark.parametrize("name", HEADS)
def test_ends_where_theirs_ends(name: str, tmp_path: Path) -> None:
    """Three steps, the last with accumulated gradients: loss, predictions, unlabelled rows."""
    results = []
    for model in case(name):
        one = trainer(model, name, tmp_path, gradient_accumulation_steps=2, seed=1)
        one.train()
        metrics = one.evaluate()
        labelled, plain = one.predict(rows(name)), one.predict(rows(name, labelled=False))
        results.append((metrics["eval_loss"], flat(labelled.predictions), flat(plain.predictions)))
    (loss, mine, plain), (other, wanted, _) = results
    assert loss == pytest.approx(other, rel=1e-4)
    for one, same, their in zip(mine, plain, wanted, strict=False):
        assert one.shape == same.shape == their.shape
        np.testing.assert_allclose(one, same, atol=1e-6)
        # Three steps of AdamW turn rounding into differences of about 1e-4 of the step.
        np.testing.assert_allclose(one, their, atol=5e-3 * max(1.0, np.abs(their).max()))


DEFAULT = ("AudioForCTC", "TextForCausalLM", "VisionForImageClassification")  # the rest is slow


@pytest.mark.parametrize("options", [{"bf16": True}, {"gradient_checkpointing": True}], ids=str)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in DEFAULT else [pytest.mark.slow]) for n in HEADS]
)
def test_options(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """In bf16 and with checkpointing it ends near where it ends without."""
    losses = []
    for asked in ({}, options):
        model, _ = case(name)
        one = trainer(model, name, tmp_path, **asked)
        one.train()
        losses.append(one.evaluate()["eval_loss"])
        assert one.predict(rows(name)).predictions is not None
    assert losses[0] == pytest.approx(losses[1], rel=0.05 if "bf16" in options else 1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_what_it_saved_loads_again(name: str, tmp_path: Path) -> None:
    """The Trainer writes the state dict of classes that are not transformers', under our names and
    without a configuration."""
    model, _ = case(name)
    trainer(model, name, tmp_path / "run").save_model(tmp_path / "saved")
    kind = type(model)
    back = kind.from_pretrained(tmp_path / "saved", config=model.config)
    model.config.save_pretrained(tmp_path / "saved")
    for read in (back, kind.from_pretrained(tmp_path / "saved")):
        for key, tensor in model.state_dict().items():
            assert torch.equal(read.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", ["TextForSequenceClassification", "TextForCausalLM"])
def test_accumulated_gradients_are_those_of_one_batch(name: str, tmp_path: Path) -> None:
    """Six rows at once, or two at a time: the same step."""
    weights = []
    for size, times in ((6, 1), (2, 3)):
        model, _ = case(name)
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": times}
        one = trainer(model, name, tmp_path, **sizes)
        one.train()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    # AdamW's first step has the size of the rate, 1e-3, whatever the gradient's; where that is
    # only rounding its sign is not known.
    assert ((weights[0] - weights[1]).abs() > 2e-5).float().mean() < 0.01


def test_label_smoothing_without_labels(tmp_path: Path) -> None:
    name = "TextForSequenceClassification"
    model, _ = case(name)
    one = trainer(model, name, tmp_path, label_smoothing_factor=0.1)
    one.train()
    assert one.predict(rows(name, 3, labelled=False)).predictions.shape == (3, 5)
