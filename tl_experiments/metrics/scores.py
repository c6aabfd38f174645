"""What is reported of a classifier, each number over a whole split at once.

A class without images has no recall, F1 or AUROC: it is NaN in a table by class and left out of every mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl_experiments.metrics.stored import Predictions

TOP_K = 5
CALIBRATION_BINS = 15
_SMALLEST = float(np.finfo(np.float64).tiny)  # a probability that rounds to 0 costs this much, not infinity


@dataclass(frozen=True)
class PerClass:
    """One entry a class, in label order, ``(n_classes,)`` each.

    Args:
        support: Images of the class, int64.
        predicted: Images that were taken for it, int64.
        precision: NaN where nothing was taken for the class.
        recall: NaN where the class has no image.
        f1: NaN where the class has no image; 0 where it has some and none was found.
        auroc: One against the rest; NaN where the split lacks the class, or has nothing else.
    """

    support: NDArray[np.int64]
    predicted: NDArray[np.int64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    auroc: NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """A reliability diagram: images by their confidence, the probability of the predicted class, in equal bins.

    Args:
        count: Images in each bin, int64 ``(n_bins,)``.
        confidence: Mean confidence in each, NaN where empty.
        accuracy: Share of right predictions in each, NaN where empty.
    """

    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def error(self) -> float:
        """Expected calibration error (Naeini et al., 2015), in [0, 1]."""
        there = self.count > 0
        gaps = np.abs(self.confidence[there] - self.accuracy[there])
        return float((gaps * self.count[there]).sum() / self.count.sum())


def summary(predictions: Predictions) -> dict[str, float]:
    """The metrics of a split that mean something for it.

    Returns:
        ``accuracy``, ``balanced_accuracy`` and ``macro_f1`` (means over the classes that the split has), in [0, 1];
        ``top_5_accuracy`` where there are more classes than 5; ``nll`` in nats; ``calibration_error`` in [0, 1];
        ``auroc``, a mean over the classes of one against the rest, where the split has 2 classes or more.
    """
    p, labels = predictions.probabilities, predictions.labels
    by_class = per_class(predictions)
    present = by_class.support > 0
    found = {
        "accuracy": float((predictions.predicted == labels).mean()),
        "balanced_accuracy": float(by_class.recall[present].mean()),
        "macro_f1": float(by_class.f1[present].mean()),
        "nll": float(-np.log(np.maximum(p[np.arange(len(labels)), labels], _SMALLEST)).mean()),
        "calibration_error": calibration(predictions).error,
    }
    if p.shape[1] > TOP_K:
        found[f"top_{TOP_K}_accuracy"] = top_k_accuracy(predictions, TOP_K)
    if present.sum() > 1:
        found["auroc"] = float(by_class.auroc[present].mean())
    return found


def top_k_accuracy(predictions: Predictions, k: int) -> float:
    """Share of images whose class is among the ``k`` most probable; of equals, the first classes count."""
    order = np.argsort(-predictions.probabilities, axis=1, kind="stable")[:, :k]
    return float((order == predictions.labels[:, None]).any(1).mean())


def confusion(predictions: Predictions) -> NDArray[np.int64]:
    """Images by true class (rows) and predicted class (columns), ``(n_classes, n_classes)``."""
    n_classes = len(predictions.classes)
    cells = predictions.labels * n_classes + predictions.predicted
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)


def per_class(predictions: Predictions) -> PerClass:
    """Precision, recall, F1 and AUROC of each class."""
    matrix = confusion(predictions)
    hits, support, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return PerClass(
            support=support,
            predicted=predicted,
            precision=np.where(predicted > 0, hits / predicted, np.nan),
            recall=np.where(support > 0, hits / support, np.nan),
            f1=np.where(support > 0, 2 * hits / (support + predicted), np.nan),
            auroc=np.array([_auroc(predictions, label) for label in range(len(support))]),
        )


def calibration(predictions: Predictions, bins: int = CALIBRATION_BINS) -> Calibration:
    """Confidence against accuracy, in ``bins`` bins of equal width over [0, 1]."""
    confidence = predictions.probabilities.max(1)
    right = predictions.predicted == predictions.labels
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)  # bins are open below
    count = np.bincount(place, minlength=bins)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Calibration(
            count=count,
            confidence=np.bincount(place, confidence, bins) / count,
            accuracy=np.bincount(place, right, bins) / count,
        )


def _auroc(predictions: Predictions, label: int) -> float:
    """Area under the ROC curve of one class against the rest: the Mann-Whitney statistic, ties counted half."""
    is_class = predictions.labels == label
    n, positive = len(is_class), int(is_class.sum())
    if positive in (0, n):
        return float("nan")
    _, place, counts = np.unique(predictions.probabilities[:, label], return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2  # mean rank of equals
    return float((rank[place[is_class]].sum() - positive * (positive + 1) / 2) / (positive * (n - positive)))
