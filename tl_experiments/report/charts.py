"""The figures of a comparison: accuracy and gains with intervals, learning curves, cost against accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tl_experiments.analysis.arms import Arm, pair_of
from tl_experiments.analysis.results import Row
from tl_experiments.analysis.runs import FinishedRun
from tl_experiments.analysis.statistics import Estimate
from tl_experiments.analysis.wording import count, share, signed, with_margin
from tl_experiments.report.figure import Dot, Figure, Line, Mark, Text, linear, logarithmic, names
from tl_experiments.report.styles import Style, strategy_of

MAX_ROWS = 30  # arms in a figure of intervals; the table has all
MAX_CURVES = 12  # arms in a figure of curves
_MAX_SEED_CURVES = 36  # single runs that are drawn behind the means
_MAX_POINTS = 60  # of a curve
_ROW = 36  # pixels

Runs = Mapping[Arm, Sequence[FinishedRun]]


@dataclass(frozen=True, kw_only=True)
class Group:
    """The arms of one dataset, as the figures see them.

    Args:
        rows: Best on val first.
        runs: Arm -> the runs of its chosen trial.
        names: Arm -> the shortest text that tells it apart.
        styles: Arm -> how it is drawn.
        suffix: Ends the names of its files, where there are several datasets.
    """

    rows: Sequence[Row]
    runs: Runs
    names: Mapping[Arm, str]
    styles: Mapping[Arm, Style]
    suffix: str = ""


def accuracy(group: Group) -> Figure:
    """Test accuracy of each arm: mean, interval, and a point for each run."""
    rows = _shown(group.rows)
    marks: list[Mark] = []
    for place, row in enumerate(rows):
        style = group.styles[row.arm]
        marks += _interval(row.test_accuracy, place, style, within=(0.0, 1.0))
        for run in group.runs.get(row.arm, ()):
            value = run.record.metrics["test"]["accuracy"]
            marks.append(Dot(value, place + 0.22, style, f"{_run(run)}: {value:.4f}", 2.4, faint=True))
        text = f"{group.names[row.arm]}: {_estimate(row.test_accuracy, share)}"
        marks.append(Dot(row.test_accuracy.mean, place + 0.08, style, text))
    return Figure(
        name=f"accuracy{group.suffix}",
        title="Test accuracy",
        about="Mean over seeds with its 95% t interval; a small point is a single run."
        + _left_out(group.rows, rows, "arms"),
        x=linear("test accuracy", _ends([row.test_accuracy for row in rows], marks), within=(0.0, 1.0)),
        y=names([group.names[row.arm] for row in rows]),
        marks=tuple(marks),
        values=tuple(with_margin(row.test_accuracy) for row in rows),
        height=_ROW * len(rows),
    )


def gains(group: Group) -> Figure | None:
    """Test accuracy over ``from_scratch``, paired; None where nothing is measured against it."""
    pairs = [(row, row.transfer_gain) for row in group.rows if row.transfer_gain is not None]
    shown = pairs[:MAX_ROWS]
    if not shown:
        return None
    marks: list[Mark] = [Line(((0.0, -0.5), (0.0, len(shown) - 0.5)), Style(), "no gain", 1.2)]
    for place, (row, gain) in enumerate(shown):
        style = group.styles[row.arm]
        text = f"{group.names[row.arm]}: {_estimate(gain, signed)}"
        marks += [*_interval(gain, place, style), Dot(gain.mean, place + 0.08, style, text)]
    return Figure(
        name=f"gains{group.suffix}",
        title="Gain over training from scratch",
        about="Test accuracy less that of from_scratch, paired by seed, with its 95% t interval; left of 0 the arm is "
        "below it." + _left_out(pairs, shown, "arms"),
        x=linear("difference in test accuracy", [0.0, *_ends([gain for _, gain in shown], marks)], sign=True),
        y=names([group.names[row.arm] for row, _ in shown]),
        marks=tuple(marks),
        values=tuple(with_margin(gain, sign=True) for _, gain in shown),
        height=_ROW * len(shown),
    )


def curves(group: Group) -> list[Figure]:
    """Val accuracy against epochs and against seconds; none where no run left a curve."""
    rows = [row for row in group.rows if any(_curve(run, "epoch") for run in group.runs.get(row.arm, ()))]
    drawn = _with_control(rows, MAX_CURVES)
    if not drawn:
        return []
    found = []
    for quantity, title, name in (("epoch", "epoch", "epochs"), ("seconds", "seconds of training", "seconds")):
        marks = _curve_marks(group, drawn, quantity)
        points = [point for mark in marks if isinstance(mark, Line) for point in mark.points]
        points += [(mark.x, mark.y) for mark in marks if isinstance(mark, Dot)]
        found.append(
            Figure(
                name=f"curves-{name}{group.suffix}",
                title=f"Learning curves against {name}",
                about="Val accuracy, mean over seeds; a faint line is a single run." + _left_out(rows, drawn, "arms"),
                x=linear(title, [0.0, *(x for x, _ in points)], within=(0.0, float("inf"))),
                y=linear("val accuracy", [y for _, y in points], within=(0.0, 1.0)),
                marks=tuple(marks),
                legend=tuple((group.names[row.arm], group.styles[row.arm]) for row in drawn),
                height=250,
            )
        )
    return found


def costs(group: Group) -> list[Figure]:
    """Test accuracy against what a run costs, with the arms that no other beats on both counts joined up."""
    measures: tuple[tuple[str, str, Callable[[Row], float]], ...] = (
        ("seconds", "seconds a run", lambda row: row.wall_clock_s),
        ("trained", "trained parameters", lambda row: float(row.trained_parameters)),
        ("memory", "peak memory, GiB", lambda row: row.peak_memory_bytes / 2**30),
    )
    return [_cost(group, *measure) for measure in measures]


def _cost(group: Group, objective: str, title: str, cost: Callable[[Row], float]) -> Figure:
    rows = [row for row in group.rows if cost(row) > 0] or list(group.rows)
    points = {row.arm: (cost(row), row.test_accuracy.mean) for row in rows}
    front = sorted({points[row.arm] for row in rows if objective in row.not_dominated})
    marks: list[Mark] = []
    if len(front) > 1:
        marks.append(Line(_stairs(front), Style(shape=2), "no arm costs less and reaches more", 1.2))
    for row in reversed(rows):  # the best on val is drawn last, on top
        x, y = points[row.arm]
        tip = f"{group.names[row.arm]}: {share(y)}, {_number(x)} {title}"
        marks.append(Dot(x, y, group.styles[row.arm], tip, 5.5, hollow=(x, y) not in front))
    best = max(rows, key=lambda row: row.recommended)
    x_axis = logarithmic(title, [x for x, _ in points.values()], _number)
    x, y = points[best.arm]
    label = Text(x, y, "recommended", left=x_axis.share(x) > 0.5)
    return Figure(
        name=f"pareto-{objective}{group.suffix}",
        title=f"Accuracy against {title}",
        about="Mean test accuracy of each arm; filled and joined are those that no other beats on both counts.",
        x=x_axis,
        y=linear("test accuracy", [y for _, y in points.values()], within=(0.0, 1.0)),
        marks=(*marks, *((label,) if best.recommended else ())),
        legend=_strategies(rows, group.styles),
        width=320,
        height=210,
    )


def _stairs(front: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    corners = [front[0]]
    for x, y in front[1:]:
        corners += [(x, corners[-1][1]), (x, y)]
    return tuple(corners)


def _strategies(rows: Sequence[Row], styles: Mapping[Arm, Style]) -> tuple[tuple[str, Style], ...]:
    """One entry a colour where shapes would make it long, else one a style."""
    by_style = {styles[row.arm]: row.arm for row in reversed(rows)}
    if len(by_style) <= MAX_CURVES and len(by_style) == len({row.arm.freeze_strategy for row in rows}):
        entries = {row.arm.freeze_strategy: styles[row.arm] for row in rows}
    else:
        entries = {strategy_of(row.arm): Style(styles[row.arm].colour) for row in rows}
    return tuple(entries.items())


def _curve_marks(group: Group, rows: Sequence[Row], quantity: str) -> list[Mark]:
    with_seeds = sum(len(group.runs[row.arm]) for row in rows) <= _MAX_SEED_CURVES
    behind: list[Mark] = []
    front: list[Mark] = []
    for row in reversed(rows):
        style, name = group.styles[row.arm], group.names[row.arm]
        single = [(run, curve) for run in group.runs[row.arm] if (curve := _curve(run, quantity))]
        if with_seeds and len(single) > 1:
            for run, curve in single:
                behind += _line(curve, style, f"{name}, {_run(run)}", 0.8, faint=True)
        mean = _mean([curve for _, curve in single])
        front += _line(mean, style, name, 2.6 if row.recommended else 1.7)
    return [*behind, *front]


def _line(
    points: Sequence[tuple[float, float]], style: Style, tip: str, weight: float, faint: bool = False
) -> list[Mark]:
    if len(points) == 1:  # a head that was solved, without steps
        return [Dot(*points[0], style, tip, 3.5, faint=faint)]
    return [Line(tuple(_thinned(points)), style, tip, weight, faint)]


def _curve(run: FinishedRun, quantity: str) -> list[tuple[float, float]]:
    """``(epoch or seconds, val accuracy)`` of each validation that has both."""
    return [
        (float(values[quantity]), float(values["val_accuracy"]))
        for values in run.curve
        if _is_number(values.get(quantity)) and _is_number(values.get("val_accuracy"))
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and value == value and abs(value) != float("inf")


def _mean(found: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Validation by validation, as far as all runs have them."""
    return [
        (sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points))
        for points in zip(*found, strict=False)
    ]


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= _MAX_POINTS:
        return list(points)
    last = len(points) - 1
    return [points[round(place * last / (_MAX_POINTS - 1))] for place in range(_MAX_POINTS)]


def _interval(estimate: Estimate, place: int, style: Style, within: tuple[float, float] | None = None) -> list[Mark]:
    if estimate.low is None or estimate.high is None:
        return []
    low, high = estimate.low, estimate.high
    if within:
        low, high = max(low, within[0]), min(high, within[1])
    y = place + 0.08
    ends = [Line(((at, y - 0.08), (at, y + 0.08)), Style(style.colour), weight=1.6) for at in (low, high)]
    return [Line(((low, y), (high, y)), Style(style.colour), weight=2.2), *ends]


def _ends(estimates: Sequence[Estimate], marks: Sequence[Mark]) -> list[float]:
    values = [mark.x for mark in marks if isinstance(mark, Dot)]
    for each in estimates:
        values += [value for value in (each.mean, each.low, each.high) if value is not None]
    return values


def _shown(rows: Sequence[Row]) -> list[Row]:
    return _with_control(rows, MAX_ROWS)


def _with_control(rows: Sequence[Row], limit: int) -> list[Row]:
    """The first rows, and the best control even where it is not among them."""
    kept = list(rows[:limit])
    control = next((row for row in rows if row.is_control), None)
    return kept if control is None or control in kept else [*kept[:-1], control]


def _left_out(rows: Sequence[object], shown: Sequence[object], noun: str) -> str:
    return f" The first {len(shown)} of {len(rows)} {noun}." if len(shown) < len(rows) else ""


def _run(run: FinishedRun) -> str:
    pair = pair_of(run.record)
    fold = f", fold {pair.fold}" if pair.fold else ""
    subset = f", label subset {pair.subset_seed}" if pair.subset_seed != pair.seed else ""
    return f"seed {pair.seed}{fold}{subset}"


def _number(value: float) -> str:
    return count(value).replace(".0", "") if value >= 1000 else f"{value:.3g}"


def _estimate(estimate: Estimate, text: Callable[[float], str]) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{text(estimate.mean)} (n={estimate.n})"
    return f"{text(estimate.mean)} [{text(estimate.low)}, {text(estimate.high)}] (n={estimate.n})"
