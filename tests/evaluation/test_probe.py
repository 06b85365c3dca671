"""evaluate.py and probe.py against scikit-learn, brute force and cases with known answers."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest
import torch
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from d2v_pretrain.evaluation import classifiers as probe
from d2v_pretrain.evaluation import probe as evaluate
from d2v_pretrain.types import Batch


def clusters(
    n: int, classes: int, width: int, seed: int, spread: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Overlapping Gaussians with shared centres; ``seed`` draws the examples."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=draw)
    return centres[labels] + spread * torch.randn(n, width, generator=draw), labels


@dataclass
class Encoded:
    layers: list[Tensor]
    valid: Tensor | None


class Toy(nn.Module):
    """An encoder of ``depth`` blocks; block i multiplies its input (B, T) -> (B, T, D) by gain **
    i."""

    def __init__(self, width: int = 8, depth: int = 4, gain: float = 1.0) -> None:
        super().__init__()
        self.project, self.depth, self.width, self.gain = nn.Linear(1, width), depth, width, gain
        self.dropout = nn.Dropout(0.5)

    def encode(self, batch: Batch, top_k: int, tensor: str) -> Encoded:
        assert tensor == "block" and not torch.is_grad_enabled()
        x = self.dropout(self.project(batch.inputs.unsqueeze(2)))
        layers = [x * self.gain**i for i in range(1, self.depth + 1)][-top_k:]
        valid = None
        if batch.lengths is not None:
            valid = torch.arange(x.shape[1]) < batch.lengths[:, None]
        return Encoded(layers, valid)


@dataclass
class Task:
    name: str
    train: Iterable[Batch]
    test: Iterable[Batch]
    classes: int
    raw_baseline: Callable[[Batch], Tensor]
    raw_baseline_name: str = "first value"
    headline: str = "few_shot"
    note: str = ""


def batches(n: int, seed: int, classes: int = 3, labelled: bool = True) -> list[Batch]:
    x, y = clusters(n, classes, 6, seed, 0.5)
    parts = torch.arange(n).split(16)
    return [Batch(x[rows], rows, labels=y[rows] if labelled else None) for rows in parts]


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_logistic_regression_is_scikit_learns(classes: int) -> None:
    (x, y), (z, _) = clusters(300, classes, 20, 0), clusters(200, classes, 20, 1)
    x, z = probe.standardise(x, z)
    weight, bias = probe.logistic_regression(x, y, classes, c=0.1)
    theirs = LogisticRegression(C=0.1, tol=1e-10, max_iter=10_000).fit(x.numpy(), y.numpy())
    probabilities = (z @ weight + bias).softmax(1)
    torch.testing.assert_close(
        probabilities, torch.from_numpy(theirs.predict_proba(z.numpy())), atol=1e-4, rtol=0
    )


def test_standardise_is_scikit_learns() -> None:
    x, z = torch.randn(50, 6) * 3 + 1, torch.randn(20, 6)
    x[:, 2] = 0.1  # constant, and not representable: its computed std is rounding noise
    scaler = StandardScaler().fit(x.double().numpy())
    ours = probe.standardise(x, z)
    torch.testing.assert_close(ours[0], torch.from_numpy(scaler.transform(x.double().numpy())))
    torch.testing.assert_close(ours[1], torch.from_numpy(scaler.transform(z.double().numpy())))


def test_knn_is_scikit_learns_also_with_fewer_examples_than_neighbours() -> None:
    (x, y), test = clusters(400, 5, 16, 0), clusters(1500, 5, 16, 1)
    for size in (400, 12):
        theirs = KNeighborsClassifier(min(20, size), metric="cosine").fit(
            x[:size].numpy(), y[:size].numpy()
        )
        expected = theirs.score(test[0].numpy(), test[1].numpy())
        assert probe.knn((x[:size], y[:size]), test, 5) == pytest.approx(expected, abs=2e-3)


def test_few_shot_draws_the_same_examples_of_every_class_whatever_the_features() -> None:
    labels = clusters(200, 4, 8, 0)[1]
    chosen = probe._draw(labels, 4, 5, key=7)
    assert labels[chosen].bincount().tolist() == [5, 5, 5, 5] and len(chosen.unique()) == 20
    assert torch.equal(chosen, probe._draw(labels, 4, 5, key=7))
    assert not torch.equal(chosen, probe._draw(labels, 4, 5, key=8))
    assert len(probe._draw(torch.tensor([0, 0, 1]), 2, 5, key=0)) == 3


def test_few_shot_gives_mean_and_deviation_of_its_draws_and_leaves_the_default_rng_alone() -> None:
    train, test = clusters(200, 4, 8, 0), clusters(100, 4, 8, 1)
    before = torch.get_rng_state()
    mean, std = probe.few_shot(train, test, 4, draws=3)
    assert torch.equal(before, torch.get_rng_state())
    rows = [probe._draw(train[1], 4, 5, probe.fold_in(0, draw)) for draw in range(3)]
    each = []
    for row in rows:
        model = LogisticRegression(C=0.1, tol=1e-8, max_iter=1000).fit(
            train[0][row].numpy(), train[1][row].numpy()
        )
        each.append(model.score(test[0].numpy(), test[1].numpy()))
    assert mean == pytest.approx(sum(each) / 3, abs=0.011)
    assert std == pytest.approx(torch.tensor(each).std(correction=0).item(), abs=0.011)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_of_equal_singular_values_is_their_number(rank: int) -> None:
    left = torch.linalg.qr(torch.randn(40, rank))[0]
    right = torch.linalg.qr(torch.randn(10, rank))[0]
    assert probe.effective_rank(left @ right.T) == pytest.approx(rank, rel=1e-4)


def test_effective_rank_of_collapsed_features_is_one() -> None:
    constant = torch.randn(1, 16).expand(50, 16) + 1e-7 * torch.randn(50, 16)
    assert probe.effective_rank(constant) == pytest.approx(1.0, abs=1e-3)
    assert probe.effective_rank(torch.zeros(5, 4)) == 1.0


def test_features_are_the_mean_over_valid_tokens_of_the_top_half_of_the_blocks() -> None:
    encoder = Toy(gain=2.0).train()
    inputs = torch.randn(3, 5)
    inputs[1, 2:] = float("nan")  # padding
    batch = Batch(
        inputs, torch.arange(3), lengths=torch.tensor([5, 2, 1]), labels=torch.tensor([2, 0, 1])
    )
    x, y = evaluate.features(encoder, [batch, batch])
    assert encoder.training and y is not None and y.tolist() == [2, 0, 1] * 2
    for row, length in enumerate((5, 2, 1)):
        base = encoder.project(inputs[row, :length, None]).detach()
        expected = (base * (2**3 + 2**4) / 2).mean(0)  # blocks 3 and 4 of 4
        torch.testing.assert_close(x[row], expected)
        torch.testing.assert_close(x[row + 3], expected)
    last, _ = evaluate.features(encoder, [batch], layers=1)
    torch.testing.assert_close(last, x[:3] * 2**4 / 12)


def test_features_of_unlabelled_batches_have_no_labels() -> None:
    assert evaluate.features(Toy(), batches(20, 0, labelled=False))[1] is None


def test_probe_returns_the_documented_plain_numbers_and_prints_them() -> None:
    task = Task("toys", batches(120, 0), batches(60, 1), 3, lambda batch: batch.inputs[:, :1])
    result = evaluate.probe(task, {"random": Toy(), "pretrained": Toy()})
    for metric in ("few_shot", "linear", "knn"):
        assert set(result[metric]) == {"floor", "random", "pretrained"}
        assert all(
            isinstance(value, float) and 0 <= value <= 1 for value in result[metric].values()
        )
    assert (result["task"], result["train"], result["test"]) == ("toys", 120, 60)
    labels = torch.cat([batch.labels for batch in task.test])
    assert result["chance"] == max((labels == k).double().mean().item() for k in range(3))
    assert json.loads(json.dumps(result)) == result
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(evaluate.table(result), evaluate.verdict(result))
    text = console.export_text()
    for row in (
        "chance",
        "raw: first value",
        "random encoder",
        "pretrained encoder",
        "60 unseen examples",
    ):
        assert row in text
    assert f"{result['linear']['pretrained']:.3f}" in text


def test_verdict_admits_defeat_and_chance() -> None:
    result = {
        "headline": "knn",
        "floor_name": "pixels",
        "knn": {"floor": 0.3, "random": 0.1, "pretrained": 0.2},
    }
    few = evaluate.verdict(
        result | {"test": 100}
    )  # two standard errors of the difference are .1 here
    assert "does NOT clearly beat the random encoder (+0.100)" in few
    text = evaluate.verdict(result | {"test": 1000})
    assert (
        "beats the random encoder (+0.100)" in text
        and "does NOT beat raw features (pixels) (-0.100)" in text
    )


def test_a_probe_of_2400_examples_takes_seconds() -> None:
    """The limit is 20 s of one core; process time, so that a busy machine does not fail it."""
    train, test = clusters(1800, 10, 128, 0), clusters(600, 10, 128, 1)
    started = time.process_time()
    for _ in range(3):
        evaluate.scores(train, test, 10)
    assert time.process_time() - started < 20
