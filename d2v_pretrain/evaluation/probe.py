"""Probes of frozen features: few-shot, linear and kNN accuracy, beside a random encoder and raw
features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from d2v_pretrain.evaluation.classifiers import effective_rank, few_shot, knn, linear, standardise
from d2v_pretrain.models.encoder import Encoder, mean_of_valid
from d2v_pretrain.types import Batch, ProbeTask

Labelled = tuple[Tensor, Tensor | None]
METRICS = {"few_shot": "few-shot, 5 labels a class", "linear": "linear", "knn": "20-NN"}


def features(encoder: Encoder, batches: Iterable[Batch], layers: int | None = None) -> Labelled:
    """Frozen features: the mean over valid tokens of the average output of the last blocks.

    Args:
        encoder: run in evaluation mode on its own device, without gradients; its mode is restored
            afterwards.
        batches: the inputs; they are not masked.
        layers: number of last blocks to average; by default half of them.

    Returns:
        Features (n, D) float32 of the n samples in all batches, D the encoder's width, and their
        labels (n,) int64, or None if the batches have none; both on the CPU.
    """
    top = max(1, encoder.depth // 2) if layers is None else layers
    device, training = next(encoder.parameters()).device, encoder.training

    def pool(batch: Batch) -> Tensor:
        """(batch, width) features. ``Encoded.layers`` do not contain extra tokens."""
        encoded = encoder.encode(batch.to(device), top_k=top, tensor="block")
        return mean_of_valid(torch.stack(encoded.layers).float().mean(0), encoded.valid)

    encoder.eval()
    try:
        return _collect(pool, batches)
    finally:
        encoder.train(training)


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
    """Evaluate raw features and every encoder on one task, by the same classifiers on the same
    examples.

    Args:
        task: see ``ProbeTask``.
        encoders: usually ``{"random": ..., "pretrained": ...}``.
        layers: see ``features``.

    Returns:
        The content of ``probe.json``, as plain types: ``few_shot``, ``linear`` and ``knn``, each as
        ``{"floor": accuracy, "random": ..., "pretrained": ...}`` where "floor" are the raw
        features; ``few_shot_std``, the deviation over draws; ``effective_rank`` of the encoders'
        test features; and ``task, classes, chance, train, test, headline, floor_name, note``.
    """
    extractors: dict[str, Callable[[Iterable[Batch]], Labelled]] = {
        "floor": partial(_collect, task.raw_baseline)
    }
    for name, encoder in encoders.items():
        extractors[name] = partial(features, encoder, layers=layers)
    result: dict[str, Any] = {key: {} for key in (*METRICS, "few_shot_std", "effective_rank")}
    result |= {
        "task": task.name,
        "headline": task.headline,
        "classes": task.classes,
        "floor_name": task.raw_baseline_name,
        "note": task.note,
    }
    for name, extract in extractors.items():
        (train, train_labels), (test, test_labels) = extract(task.train), extract(task.test)
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


def scores(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int
) -> dict[str, float]:
    """Test accuracies of all classifiers on one kind of features.

    Args:
        train, test: ((n, D) features, (n,) labels) of n examples. Both are standardised by the
            statistics of ``train``.
        classes: number of classes.

    Returns:
        ``few_shot``, ``few_shot_std``, ``linear``, ``knn``.
    """
    x, z = standardise(train[0], test[0])
    known, unseen = (x, train[1]), (z, test[1])
    mean, std = few_shot(known, unseen, classes)
    return {
        "few_shot": mean,
        "few_shot_std": std,
        "linear": linear(known, unseen, classes),
        "knn": knn(known, unseen, classes),
    }


def table(result: Mapping[str, Any]) -> Table:
    """The result of ``probe`` for the screen: rows for chance, raw features, random and pretrained
    encoder; the headline metric in the first column.
    """
    title = f"Probe '{result['task']}' on frozen features, {result['test']:,} unseen examples"
    note = result["note"] or None
    out = Table(title=title, caption=note, title_justify="left", caption_justify="left")
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
        cells = {metric: f"{result[metric][row]:.3f}" for metric in order}
        cells["few_shot"] += f" ±{result['few_shot_std'][row]:.3f}"
        style = "bold" if row == "pretrained" else ""
        out.add_row(names.get(row, row), *cells.values(), style=style)
    return out


def verdict(result: Mapping[str, Any]) -> str:
    """One sentence: whether the pretrained encoder beats the random one and the raw features by the
    headline metric, and by how much.

    "Beats" means a gain of more than two standard errors of a difference of two accuracies on this
    number of test examples. The spread over seeds is not known from one run.
    """
    column = result[result["headline"]]
    gains = {"the random encoder": "random", f"raw features ({result['floor_name']})": "floor"}
    parts = []
    for name, row in gains.items():
        both = (column["pretrained"], column[row])
        gain = both[0] - both[1]
        error = sum(p * (1 - p) / result["test"] for p in both) ** 0.5
        beats = "does NOT clearly beat" if gain > 0 else "does NOT beat"
        beats = "beats" if gain > 2 * error else beats
        parts.append(f"{beats} {name} ({gain:+.3f})")
    return f"The pretrained encoder {' and '.join(parts)} by {METRICS[result['headline']]}."
