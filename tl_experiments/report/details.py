"""What one arm does with single classes and single images, over all its runs together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl_experiments.analysis.runs import FinishedRun
from tl_experiments.metrics.scores import Calibration, PerClass, calibration, confusion, per_class
from tl_experiments.metrics.stored import Predictions

WORST = 12
PAIRS = 10


@dataclass(frozen=True)
class ConfusedPair:
    """Images of one class that were taken for another; ``share`` is of the class's images."""

    true: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class WorstPrediction:
    """An image that was missed.

    Args:
        item: Its id.
        true: Its class.
        predicted: What it was taken for most often, of equals with the most probability.
        confidence: Mean probability of that class, in [0, 1].
        of_true: Mean probability of its own class, in [0, 1].
        missed: Runs that missed it.
        runs: Runs that saw it.
    """

    item: str
    true: str
    predicted: str
    confidence: float
    of_true: float
    missed: int
    runs: int


@dataclass(frozen=True)
class Detail:
    """One arm on one split.

    Args:
        runs: Number of runs whose predictions are pooled.
        classes: Class names in label order.
        by_class: Of the pooled predictions.
        matrix: True class (rows) by predicted class, ``(n_classes, n_classes)``, summed over runs.
        calibration: Of the pooled predictions.
        pairs: The most confused, most images first.
        worst: The images whose class was given the least probability, of those that were missed.
    """

    runs: int
    classes: tuple[str, ...]
    by_class: PerClass
    matrix: NDArray[np.int64]
    calibration: Calibration
    pairs: tuple[ConfusedPair, ...]
    worst: tuple[WorstPrediction, ...]

    @property
    def absent(self) -> tuple[str, ...]:
        """Classes without an image in the split."""
        return tuple(name for name, n in zip(self.classes, self.by_class.support, strict=True) if not n)


def detail(runs: Sequence[FinishedRun], split: str = "test") -> Detail | None:
    """Pool what an arm's runs predicted; runs whose predictions cannot be read are left out, None if none can.

    Args:
        runs: Of one arm.
        split: The split.
    """
    from tl_experiments.errors import UserError

    found: list[Predictions] = []
    for run in runs:
        try:
            predictions = run.predictions.get(split)
        except UserError:
            continue
        # with other classes the labels would mean something else
        if predictions is not None and (not found or predictions.classes == found[0].classes):
            found.append(predictions)
    if not found:
        return None
    pooled = Predictions(
        tuple(item for each in found for item in each.items),
        np.concatenate([each.labels for each in found]),
        np.concatenate([each.probabilities for each in found]),
        found[0].classes,
    )
    matrix = confusion(pooled)
    return Detail(
        len(found), pooled.classes, per_class(pooled), matrix, calibration(pooled),
        _pairs(matrix, pooled.classes), _worst(pooled),
    )  # fmt: skip


def _pairs(matrix: NDArray[np.int64], classes: Sequence[str]) -> tuple[ConfusedPair, ...]:
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    support = matrix.sum(1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    cells = [divmod(int(place), len(classes)) for place in order]
    return tuple(
        ConfusedPair(classes[i], classes[j], int(wrong[i, j]), float(wrong[i, j] / support[i]))
        for i, j in cells
        if wrong[i, j]
    )


def _worst(pooled: Predictions) -> tuple[WorstPrediction, ...]:
    places: dict[str, list[int]] = defaultdict(list)
    for place, item in enumerate(pooled.items):
        places[item].append(place)
    of_true = pooled.probabilities[np.arange(len(pooled.labels)), pooled.labels]
    missed = pooled.predicted != pooled.labels
    found = [
        (float(of_true[at].mean()), item, at) for item, at in places.items() if missed[at].sum() * 2 > len(at)
    ]  # by most of its runs: one unlucky seed makes no hard image
    return tuple(_prediction(pooled, item, at) for _, item, at in sorted(found)[:WORST])


def _prediction(pooled: Predictions, item: str, at: Sequence[int]) -> WorstPrediction:
    label = int(pooled.labels[at[0]])
    mean = pooled.probabilities[list(at)].mean(0)
    votes = np.bincount(pooled.predicted[list(at)], minlength=len(mean)).astype(float)
    votes[label] = -1.0
    predicted = int(np.lexsort((-mean, -votes))[0])
    return WorstPrediction(
        item=item,
        true=pooled.classes[label],
        predicted=pooled.classes[predicted],
        confidence=float(mean[predicted]),
        of_true=float(mean[label]),
        missed=int((pooled.predicted[list(at)] != label).sum()),
        runs=len(at),
    )
