"""Probes on frozen features: few-shot, linear and kNN beside a raw-feature floor and a random
encoder; the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from rich.table import Table
from torch import Tensor

from d2v_pretrain.evaluation.classifiers import effective_rank, few_shot, knn, linear, standardise
from d2v_pretrain.models.encoder import Encoder, mean_of_valid
from d2v_pretrain.types import Batch

Labelled = tuple[Tensor, Tensor | None]
METRICS = {"few_shot": "few-shot, 5 labels a class", "linear": "linear", "knn": "20-NN"}


class ProbeTask(Protocol):
    """A labelled task that frozen features are judged on.

    Attributes:
        name: what is told apart ("words", "shapes", "order").
        train, test: batches with labels, iterable again and again; ``test`` holds speakers / images
            / documents that neither ``train`` nor pretraining has seen.
        classes: number of classes; labels are 0 ... classes - 1.
        floor: maps a batch to (B, F) features that no one learned, such as pixels; the bar that
            learning must clear.
        floor_name: what those are, in a few words.
        headline: the metric to judge by, a key of ``METRICS``.
        note: what a reader should know about the task, or "".
    """

    name: str
    train: Iterable[Batch]
    test: Iterable[Batch]
    classes: int
    floor: Callable[[Batch], Tensor]
    floor_name: str
    headline: str
    note: str


def features(encoder: Encoder, batches: Iterable[Batch], layers: int | None = None) -> Labelled:
    """Frozen features: the mean over valid tokens of the average output of the top blocks.

    Args:
        encoder: run in evaluation mode on its own device, without gradients; its mode is put back
            afterwards.
        batches: inputs, unmasked. layers: how many top blocks to average; half of them by default,
            1 is the last.

    Returns:
        (n, D) float32 and, if the batches are labelled, (n,) int64 labels; both on the CPU.
    """
    top = max(1, encoder.depth // 2) if layers is None else layers
    device, training = next(encoder.parameters()).device, encoder.training
    encoder.eval()
    try:
        return _collect(lambda batch: _pool(encoder, batch.to(device), top), batches)
    finally:
        encoder.train(training)


def _pool(encoder: Encoder, batch: Batch, top: int) -> Tensor:
    """(B, D): mean over time of the mean of the top blocks. Extra tokens are not in ``layers``."""
    encoded = encoder.encode(batch, top_k=top, tensor="block")
    return mean_of_valid(torch.stack(encoded.layers).float().mean(0), encoded.valid)


@torch.no_grad()
def _collect(extract: Callable[[Batch], Tensor], batches: Iterable[Batch]) -> Labelled:
    rows: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in batches:
        rows.append(extract(batch).float().cpu())
        if batch.labels is not None:
            labels.append(batch.labels.cpu())
    assert rows, "no batches to take features from"
    assert len(labels) in (0, len(rows)), "some batches have labels, some have none"
    return torch.cat(rows), torch.cat(labels) if labels else None


def probe(
    task: ProbeTask, encoders: Mapping[str, Encoder], layers: int | None = None
) -> dict[str, Any]:
    """Judge the floor and every encoder on one task, by the same classifiers on the same examples.

    Args:
        task: see ``ProbeTask``. encoders: usually ``{"random": ..., "pretrained": ...}``. layers:
            see ``features``.

    Returns:
        Plain numbers for ``probe.json``: ``few_shot``, ``linear`` and ``knn`` as ``{"floor":
            accuracy, "random": ...,
        "pretrained": ...}``, the deviation over draws ``few_shot_std``, ``effective_rank`` of the
        encoders' test features, and ``task, classes, chance, train, test, headline, floor_name,
        note``.
    """
    sources: dict[str, Callable[[Iterable[Batch]], Labelled]] = {
        "floor": partial(_collect, task.floor)
    }
    sources |= {
        name: partial(features, encoder, layers=layers) for name, encoder in encoders.items()
    }
    result: dict[str, Any] = {
        key: {} for key in (*METRICS, "few_shot_std", "effective_rank")
    } | _facts(task)
    for name, source in sources.items():
        (train, train_labels), (test, test_labels) = source(task.train), source(task.test)
        assert train_labels is not None and test_labels is not None, (
            f"probe task {task.name} has no labels"
        )
        if name != "floor":
            result["effective_rank"][name] = effective_rank(test)
        for key, value in scores((train, train_labels), (test, test_labels), task.classes).items():
            result[key][name] = value
        result["chance"] = test_labels.bincount().max().item() / len(test)
        result |= {"train": len(train), "test": len(test)}
    return result


def _facts(task: ProbeTask) -> dict[str, Any]:
    names = ("headline", "classes", "floor_name", "note")
    return {"task": task.name} | {name: getattr(task, name) for name in names}


def scores(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int
) -> dict[str, float]:
    """All classifiers on one kind of features: ``few_shot``, ``few_shot_std``, ``linear``, ``knn``
    (test accuracies).

    Args:
        train, test: ((n, D) features, (n,) labels); standardised here, by the training features.
    """
    x, z = standardise(train[0], test[0])
    known, unseen = (x, train[1]), (z, test[1])
    mean, std = few_shot(known, unseen, classes)
    nearest = knn(known, unseen, classes)
    return {
        "few_shot": mean,
        "few_shot_std": std,
        "linear": linear(known, unseen, classes),
        "knn": nearest,
    }


def table(result: Mapping[str, Any]) -> Table:
    """The printed form of ``probe``'s result: chance, floor, random and pretrained rows, the
    headline metric first."""
    title = f"Probe '{result['task']}' on frozen features, {result['test']:,} unseen examples"
    out = Table(
        title=title, caption=result["note"] or None, title_justify="left", caption_justify="left"
    )
    out.add_column("features")
    order = sorted(METRICS, key=lambda metric: metric != result["headline"])
    for metric in order:
        out.add_column(METRICS[metric], justify="right")
    out.add_row("chance (largest class)", *[f"{result['chance']:.3f}"] * len(order), style="dim")
    names = {
        "floor": f"raw: {result['floor_name']}",
        "random": "random encoder",
        "pretrained": "pretrained encoder",
    }
    for row in result["linear"]:
        out.add_row(
            names.get(row, row),
            *(_cell(result, metric, row) for metric in order),
            style="bold" * (row == "pretrained"),
        )
    return out


def _cell(result: Mapping[str, Any], metric: str, row: str) -> str:
    spread = f" ±{result['few_shot_std'][row]:.3f}" if metric == "few_shot" else ""
    return f"{result[metric][row]:.3f}{spread}"


def verdict(result: Mapping[str, Any]) -> str:
    """One sentence: did pretraining beat the random encoder and the raw features by the headline
    metric, by how much.

    "Beats" takes a gain of two standard errors of the difference of two accuracies on so many test
    examples; one run on one seed says nothing of the spread over seeds."""
    column = result[result["headline"]]
    gains = {"the random encoder": "random", f"raw features ({result['floor_name']})": "floor"}
    parts = []
    for name, row in gains.items():
        gain = column["pretrained"] - column[row]
        error = (
            sum(p * (1 - p) / result["test"] for p in (column["pretrained"], column[row])) ** 0.5
        )
        said = (
            "beats"
            if gain > 2 * error
            else "does NOT clearly beat"
            if gain > 0
            else "does NOT beat"
        )
        parts.append(f"{said} {name} ({gain:+.3f})")
    return f"The pretrained encoder {' and '.join(parts)} by {METRICS[result['headline']]}."
