"""The figures of one arm: its confusion matrix and its reliability diagram."""

from __future__ import annotations

import numpy as np

from tl_experiments.analysis.wording import plural, share
from tl_experiments.report.details import Detail
from tl_experiments.report.figure import Axis, Bar, Cell, Dot, Figure, Line, Mark, names
from tl_experiments.report.styles import Style

_NUMBERED = 12  # classes up to which a square has room for its number


def confusion_matrix(detail: Detail, suffix: str = "", *, most: int) -> Figure | None:
    """Images by true and predicted class; None where there are more classes than ``most``."""
    classes = detail.classes
    if len(classes) > most:
        return None
    support = np.maximum(detail.matrix.sum(1), 1)
    marks: list[Mark] = []
    for i, true in enumerate(classes):
        for j, predicted in enumerate(classes):
            number = int(detail.matrix[i, j])
            if number:
                part = number / support[i]
                tip = f"{true} taken for {predicted}" if i != j else f"{true} found"
                text = str(number) if len(classes) <= _NUMBERED else ""
                marks.append(Cell(j, i, part, text, f"{tip}: {number} of {support[i]} ({part:.0%})", right=i == j))
    return Figure(
        name=f"confusion{suffix}",
        title="Confusion matrix",
        about=f"Images of each class (rows) by what they were taken for (columns), over {plural(detail.runs, 'run')}.",
        x=names(classes, "taken for", upwards=True),
        y=names(classes, "class"),
        marks=tuple(marks),
        height=max(150, min(340, 40 * len(classes))),
    )


def reliability(detail: Detail, style: Style, suffix: str = "") -> Figure:
    """Accuracy against confidence (DeGroot & Fienberg, 1983), with the share of images in each bin."""
    found = detail.calibration
    total, bins = int(found.count.sum()), len(found.count)
    marks: list[Mark] = []
    for place in np.flatnonzero(found.count).tolist():
        number = int(found.count[place])
        tip = f"confidence {place / bins:.2f} to {(place + 1) / bins:.2f}: {number} of {total} images"
        marks.append(Bar(place / bins, (place + 1) / bins, number / total, tip))
    marks.append(Line(((0.0, 0.0), (1.0, 1.0)), Style(shape=2), "confidence equal to accuracy", 1.2))
    there = [place for place in range(bins) if found.count[place]]
    points = tuple((float(found.confidence[place]), float(found.accuracy[place])) for place in there)
    marks.append(Line(points, Style(style.colour), weight=1.8) if len(points) > 1 else Dot(*points[0], style))
    for place, (x, y) in zip(there, points, strict=True):
        tip = f"confidence {share(x)}, accuracy {share(y)}, {plural(int(found.count[place]), 'image')}"
        marks.append(Dot(x, y, Style(style.colour), tip, 3.5))
    ticks = tuple((tick, f"{tick:g}") for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0))
    return Figure(
        name=f"calibration{suffix}",
        title="Calibration",
        about=f"Accuracy of images by their confidence; on the dotted line both agree, below it the model is too sure. "
        f"Columns: share of images. Expected calibration error of the pooled runs {share(found.error)}.",
        x=Axis("confidence", 0.0, 1.0, ticks),
        y=Axis("accuracy", 0.0, 1.0, ticks),
        marks=tuple(marks),
        height=250,
    )
