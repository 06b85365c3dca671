"""Classifiers on frozen features, in torch alone: logistic regression, few-shot, kNN; and their
effective rank."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d2v_pretrain.rng import fold_in

Split = tuple[Tensor, Tensor]


def standardise(train: Tensor, *others: Tensor) -> list[Tensor]:
    """Give each channel zero mean and unit variance, by the statistics of ``train``. Channels that
    are constant there become zero.

    Args:
        train: (n, D) features, D channels of n examples.
        others: features of other examples, scaled by the same numbers.

    Returns:
        ``[train, *others]`` as float64.
    """
    reference = train.double()
    mean, std = reference.mean(0), reference.std(0, correction=0)
    # Rounding leaves a constant channel with a tiny std; dividing by it would blow noise up to unit
    # variance.
    std = torch.where(std > 1e-6 * mean.abs().clamp_min(1e-6), std, torch.ones_like(std))
    return [(x.double() - mean) / std for x in (train, *others)]


def logistic_regression(
    x: Tensor, y: Tensor, classes: int, c: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression, ``min |W|^2 / 2 + c * sum_i nll_i``, by full-batch L-BFGS in
    float64.

    The same objective as ``sklearn.linear_model.LogisticRegression(C=c)``: the intercept is not
    penalised, and two classes share one weight vector (two symmetric ones would be penalised half
    as much).

    Args:
        x: (n, D) standardised features, D channels of n examples.
        y: (n,) int64 class ids.
        classes: K, the number of classes.
        c: inverse strength of the penalty.

    Returns:
        weight (D, K) and bias (K,), float64: ``(x @ weight + bias).argmax(1)`` predicts.
    """
    x, rows = x.double(), 1 if classes == 2 else classes
    solution = torch.zeros(
        x.shape[1] + 1, rows, dtype=torch.float64, device=x.device, requires_grad=True
    )
    solver = torch.optim.LBFGS(
        [solution],
        max_iter=500,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        weight, bias = _both_classes(solution, classes)
        nll = F.cross_entropy(x @ weight + bias, y, reduction="sum")
        total = (0.5 * solution[:-1].square().sum() + c * nll) / (c * len(y))
        total.backward()
        return total

    with torch.enable_grad():
        solver.step(loss)
    return _both_classes(solution.detach(), classes)


def _both_classes(solution: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    if classes == 2:
        solution = torch.cat([torch.zeros_like(solution), solution], dim=1)
    return solution[:-1], solution[-1]


def linear(train: Split, test: Split, classes: int, c: float = 0.1) -> float:
    """Accuracy on ``test`` of a logistic regression on all of ``train``; both hold standardised
    features."""
    weight, bias = logistic_regression(*train, classes, c)
    return _accuracy((test[0].double() @ weight + bias).argmax(1), test[1])


def few_shot(
    train: Split, test: Split, classes: int, shots: int = 5, draws: int = 10, seed: int = 0
) -> tuple[float, float]:
    """Logistic regression on ``shots`` examples per class, for several draws of these examples.

    The draws depend on ``seed`` and the labels alone, so all encoders get the same examples.

    Args:
        train, test: ((n, D) standardised features, (n,) class ids) of n examples. If a class has
            fewer than ``shots`` training examples, all of them are used.
        classes: number of classes.
        shots: training examples per class.
        draws: number of draws.
        seed: of the draws.

    Returns:
        The mean over the draws of the accuracy on all examples of ``test``, and the standard
        deviation.
    """
    features, labels = train
    scores = []
    for draw in range(draws):
        chosen = _draw(labels, classes, shots, fold_in(seed, draw)).to(features.device)
        scores.append(linear((features[chosen], labels[chosen]), test, classes))
    score = torch.tensor(scores, dtype=torch.float64)
    return score.mean().item(), score.std(correction=0).item()


def _draw(labels: Tensor, classes: int, shots: int, key: int) -> Tensor:
    """Indices of ``shots`` examples of every class; the default random generator is not used."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(key))
    shuffled = labels.cpu()[order]
    return torch.cat([order[shuffled == k][:shots] for k in range(classes)])


def knn(train: Split, test: Split, classes: int, neighbours: int = 20) -> float:
    """Accuracy of the majority class of the most similar training examples.

    Similarity is the cosine; a tie goes to the lowest class id.

    Args:
        train, test: ((n, D) standardised features, (n,) class ids) of n examples.
        classes: number of classes.
        neighbours: number of training examples that vote, at most n.
    """
    bank, votes = F.normalize(train[0], dim=1), F.one_hot(train[1], classes)
    nearest = min(neighbours, len(bank))
    predicted = []
    for part in test[0].split(1024):
        similar = (F.normalize(part, dim=1) @ bank.T).topk(nearest, dim=1).indices
        predicted.append(votes[similar].sum(1).argmax(1))
    return _accuracy(torch.cat(predicted), test[1])


def effective_rank(x: Tensor) -> float:
    """``exp(entropy(s / sum(s)))`` of the singular values s: the number of directions that the
    features use, between 1 and min(n, D).

    RankMe (Garrido et al., 2023), after Roy and Vetterli (2007). Features are not centred: if they
    collapse to one vector the rank is 1, and not that of rounding noise.

    Args:
        x: (n, D) features, D channels of n examples.
    """
    singular = torch.linalg.svdvals(x.double())
    share = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return torch.special.entr(share).sum().exp().item()


def _accuracy(predicted: Tensor, labels: Tensor) -> float:
    return (predicted == labels).double().mean().item()
