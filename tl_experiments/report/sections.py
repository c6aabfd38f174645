"""What the page and the files of figures are made of, dataset by dataset."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from tl_experiments.analysis.compare import Evidence
from tl_experiments.analysis.comparison import arm_names
from tl_experiments.analysis.results import Row
from tl_experiments.analysis.wording import share
from tl_experiments.report.charts import Group, accuracy, costs, curves, gains
from tl_experiments.report.detail_charts import confusion_matrix, reliability
from tl_experiments.report.details import Detail, detail
from tl_experiments.report.figure import Figure
from tl_experiments.report.overview import average_ranks, interquartile_means
from tl_experiments.report.styles import styles

MAX_ARMS = 8  # whose classes are shown, of a dataset
_MAX_CLASSES = 100  # in a table by class
_MAX_CLASSES_BESIDE = 20  # in that of an arm that is not recommended


@dataclass(frozen=True)
class ArmDetail:
    """An arm with what its predictions show; ``in_full`` for the one that is recommended."""

    row: Row
    detail: Detail
    figures: tuple[Figure, ...]
    in_full: bool


def groups(evidence: Evidence) -> list[Group]:
    """The comparison by dataset, in its order."""
    rows = evidence.comparison.rows
    style = styles([row.arm for row in rows])
    by_dataset = [list(group) for _, group in groupby(rows, key=lambda row: row.arm.dataset)]
    return [
        Group(
            rows=group,
            runs=evidence.runs,
            names=arm_names([row.arm for row in group]),
            styles=style,
            suffix=f"-{number}-{_slug(group[0].arm.dataset)}" if len(by_dataset) > 1 else "",
        )
        for number, group in enumerate(by_dataset, start=1)
    ]


def dataset_figures(group: Group) -> list[tuple[str, list[Figure]]]:
    """The figures that compare arms: titles with what stands side by side under them."""
    gain, learning = gains(group), curves(group)
    found = [("Accuracy", [accuracy(group), *([gain] if gain else [])])]
    found += [("Learning curves", learning)] if learning else []
    return [*found, ("Accuracy against cost", costs(group))]


def arm_details(group: Group) -> tuple[list[ArmDetail], int]:
    """The recommended arm first, then the control and the others by val; and how many more there are."""
    order = sorted(group.rows, key=lambda row: (not row.recommended, not row.is_control))
    found: list[ArmDetail] = []
    for row in order[:MAX_ARMS]:
        pooled = detail(group.runs.get(row.arm, ()))
        if pooled is not None:
            in_full = row.recommended
            found.append(ArmDetail(row, pooled, _figures(pooled, group, row, in_full), in_full))
    return found, len(order) - len(order[:MAX_ARMS])


def all_figures(evidence: Evidence) -> list[Figure]:
    """Every figure of the report."""
    by_dataset = groups(evidence)
    overview = evidence.comparison.overview
    found = []
    if overview is not None:
        drawn = by_dataset[0].styles
        found += [average_ranks(overview, drawn), interquartile_means(overview, drawn)]
    for group in by_dataset:
        found += [figure for _, figures in dataset_figures(group) for figure in figures]
        found += [figure for each in arm_details(group)[0] for figure in each.figures]
    return found


def class_rows(detail: Detail, *, whole: bool) -> tuple[list[tuple[str, ...]], str]:
    """A row a class, in label order; where there are too many, the worst by F1, with a note that says so."""
    by_class, limit = detail.by_class, _MAX_CLASSES if whole else _MAX_CLASSES_BESIDE
    order = list(range(len(detail.classes)))
    note = ""
    if len(order) > limit:
        order = [int(label) for label in np.argsort(by_class.f1, kind="stable")[:limit]]
        note = f": the {limit} of {len(detail.classes)} with the lowest F1"
    return [
        (
            detail.classes[label],
            str(by_class.support[label]),
            *(_share(float(numbers[label])) for numbers in (by_class.precision, by_class.recall, by_class.f1)),
            _share(float(by_class.auroc[label])),
        )
        for label in order
    ], note


def pair_rows(detail: Detail) -> list[tuple[str, ...]]:
    """The most confused pairs as a table."""
    return [(pair.true, pair.predicted, str(pair.count), f"{pair.share:.0%}") for pair in detail.pairs]


def _figures(pooled: Detail, group: Group, row: Row, in_full: bool) -> tuple[Figure, ...]:
    style = group.styles[row.arm]
    suffix = group.suffix if in_full else f"{group.suffix}-{_place(group.rows, row)}-{_slug(group.names[row.arm])}"
    matrix = confusion_matrix(pooled, suffix, most=30 if in_full else 12)
    return (*((matrix,) if matrix else ()), reliability(pooled, style, suffix))


def _place(rows: Sequence[Row], row: Row) -> int:
    return 1 + next(place for place, each in enumerate(rows) if each is row)


def _slug(text: str) -> str:
    """A part of a file name: what is safe on every disk."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text)[:40].strip("_") or "x"


def _share(value: float) -> str:
    return "n/a" if math.isnan(value) else share(value)
