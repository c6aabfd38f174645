"""What a finished run predicted, as small tables of plain values: the same in every tracker that shows tables."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_experiments.metrics import scores
from tl_experiments.metrics.stored import Predictions
from tl_experiments.safe_text import csv_text, redacted_text
from tl_experiments.tracking.entries import short

_NAME_LIMIT = 64
_ITEM_LIMIT = 200
_MOST_ROWS = 10_000  # of a confusion matrix; W&B draws no more
_SAMPLE_SEED = 0  # one for all, so that runs over the same images show the same ones


@dataclass(frozen=True)
class Table:
    """Rows of numbers and short texts; None where a number means nothing.

    Args:
        columns: Their names.
        rows: One value a column each.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def records(self) -> Iterable[Mapping[str, Any]]:
        """Each row by column."""
        return (dict(zip(self.columns, row, strict=True)) for row in self.rows)


@dataclass(frozen=True)
class Chosen:
    """Images whose predictions are shown one by one.

    Args:
        items: Their ids, as in ``Item.id``.
        table: A row each, with ``chosen``: ``worst`` or ``sample``.
    """

    items: tuple[str, ...]
    table: Table


def as_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows under the union of their keys, in the order in which they come up; what a row lacks is empty."""
    listed = list(rows)
    columns = list(dict.fromkeys(key for row in listed for key in row)) or ["run"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    for row in listed:
        writer.writerow({key: csv_text(value) if isinstance(value, str) else value for key, value in row.items()})
    return stream.getvalue()


def shown_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names as others may see them: one line, without secrets, no more than 64 characters, and no two the same."""
    safe = [short(redacted_text(name), _NAME_LIMIT) for name in names]
    counts = Counter(safe)
    return tuple(f"{name} #{place}" if counts[name] > 1 else name for place, name in enumerate(safe))


def per_class(predictions: Predictions) -> Table:
    """A row a class: images, how often it was predicted, precision, recall, F1, AUROC against the rest."""
    found = scores.per_class(predictions)
    rows = zip(
        shown_names(predictions.classes),
        found.support.tolist(),
        found.predicted.tolist(),
        *(_numbers(values) for values in (found.precision, found.recall, found.f1, found.auroc)),
        strict=True,
    )
    return Table(("class", "support", "predicted", "precision", "recall", "f1", "auroc"), tuple(rows))


def confusion(predictions: Predictions) -> Table:
    """A row a cell: actual class, predicted class, images.

    Cells without images are left out where there are more than 100 classes, and then the smallest beyond 10,000 cells.
    """
    matrix = scores.confusion(predictions)
    names = shown_names(predictions.classes)
    cells = np.arange(matrix.size) if matrix.size <= _MOST_ROWS else np.flatnonzero(matrix)
    counts = matrix.reshape(-1)[cells]
    if len(cells) > _MOST_ROWS:
        cells = np.sort(cells[np.argsort(-counts, kind="stable")[:_MOST_ROWS]])
    rows = ((names[cell // len(names)], names[cell % len(names)], int(matrix.flat[cell])) for cell in cells.tolist())
    return Table(("actual", "predicted", "images"), tuple(rows))


def calibration(predictions: Predictions) -> Table:
    """A row a bin of confidence that holds images: mean confidence, accuracy, images."""
    found = scores.calibration(predictions)
    columns = (_numbers(found.confidence), _numbers(found.accuracy), found.count.tolist())
    return Table(("confidence", "accuracy", "images"), tuple(row for row in zip(*columns, strict=True) if row[2] > 0))


def chosen_predictions(predictions: Predictions, n: int) -> Chosen:
    """``n`` images at most: half of them those whose class was held least probable, then a sample."""
    total = len(predictions.items)
    of_label = predictions.probabilities[np.arange(total), predictions.labels]
    worst = np.argsort(of_label, kind="stable")[: (n + 1) // 2].tolist()
    order = np.random.default_rng(_SAMPLE_SEED).permutation(total).tolist()
    sample = [index for index in order if index not in worst][: n - len(worst)]
    names, guesses = shown_names(predictions.classes), predictions.predicted
    rows = tuple(
        (
            chosen,
            short(redacted_text(predictions.items[index]), _ITEM_LIMIT),
            names[predictions.labels[index]],
            names[guesses[index]],
            float(predictions.probabilities[index].max()),
            float(of_label[index]),
        )
        for chosen, indices in (("worst", worst), ("sample", sample))
        for index in indices
    )
    columns = ("chosen", "item", "label", "prediction", "confidence", "label_probability")
    return Chosen(tuple(predictions.items[index] for index in (*worst, *sample)), Table(columns, rows))


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]
