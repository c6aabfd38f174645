"""Over all datasets: Friedman's test, average ranks with their critical difference, interquartile means."""

from __future__ import annotations

from collections.abc import Mapping

from tl_experiments.analysis.arms import Arm
from tl_experiments.analysis.comparison import arm_names
from tl_experiments.analysis.findings import Overview
from tl_experiments.analysis.verdict import SIGNIFICANCE
from tl_experiments.analysis.wording import p_text, plural, share
from tl_experiments.report.contrasts import p_cell
from tl_experiments.report.figure import Dot, Figure, Line, Mark, linear, names
from tl_experiments.report.styles import Style

_ROW = 36  # pixels
_FEW_DATASETS = 10  # below which Friedman's approximation is rough (Demsar, 2006)


def overview_sentence(overview: Overview) -> str:
    """What Friedman's test says."""
    over = f"over {plural(len(overview.datasets), 'dataset')} and {plural(len(overview.standings), 'arm')}"
    if overview.friedman is None:
        return f"Ranks by test accuracy {over}; Friedman's test needs 3 arms."
    found = overview.friedman
    differ = "the arms differ" if found.p_value < SIGNIFICANCE else "no difference between the arms is shown"
    few = "; its approximation wants 10 datasets and 5 arms" if len(overview.datasets) < _FEW_DATASETS else ""
    return f"Friedman's test {over}: {differ} ({p_text(found.p_value)}{few})."


def standing_rows(overview: Overview) -> list[tuple[str, ...]]:
    """A row an arm, best average rank first."""
    label = _labels(overview)
    return [
        (
            label[each.arm],
            f"{each.average_rank:.2f}",
            share(each.interquartile_mean),
            "" if each.low is None or each.high is None else f"[{share(each.low)}, {share(each.high)}]",
            p_cell(each.wilcoxon_p),
        )
        for each in overview.standings
    ]


def average_ranks(overview: Overview, styles: Mapping[Arm, Style]) -> Figure:
    """Average ranks with Nemenyi's critical difference (Demsar, 2006), half of it to each side."""
    label, half = _labels(overview), overview.critical_difference / 2
    marks: list[Mark] = []
    for place, each in enumerate(overview.standings):
        style, rank, y = styles[each.arm], each.average_rank, place + 0.08
        marks.append(Line(((rank - half, y), (rank + half, y)), Style(style.colour), weight=2.2))
        marks.append(Dot(rank, y, style, f"{label[each.arm]}: {rank:.2f}"))
    worst = max(each.average_rank for each in overview.standings)
    return Figure(
        name="average-ranks",
        title="Average rank",
        about="1 is best. Bars are half a critical difference to each side: arms whose bars do not overlap differ at "
        f"5% (Nemenyi; critical difference {overview.critical_difference:.2f}).",
        x=linear("average rank by test accuracy", [1 - half, worst + half]),
        y=names(list(label.values())),
        marks=tuple(marks),
        values=tuple(f"{each.average_rank:.2f}" for each in overview.standings),
        height=_ROW * len(label),
    )


def interquartile_means(overview: Overview, styles: Mapping[Arm, Style]) -> Figure:
    """Interquartile means with their stratified bootstrap intervals (Agarwal et al., 2021)."""
    label = _labels(overview)
    marks: list[Mark] = []
    for place, each in enumerate(overview.standings):
        style, mean, y = styles[each.arm], each.interquartile_mean, place + 0.08
        tip = f"{label[each.arm]}: {share(mean)}"
        if each.low is not None and each.high is not None:
            tip += f" [{share(each.low)}, {share(each.high)}]"
            marks.append(Line(((each.low, y), (each.high, y)), Style(style.colour), weight=2.2))
        marks.append(Dot(mean, y, style, tip))
    ends = [end for each in overview.standings for end in (each.interquartile_mean, each.low, each.high)]
    return Figure(
        name="interquartile-means",
        title="Interquartile mean of test accuracy",
        about="Over the middle half of all runs on all datasets, with its 95% stratified bootstrap interval where "
        "every dataset has 3 runs of the arm.",
        x=linear("test accuracy", [end for end in ends if end is not None], within=(0, 1)),
        y=names(list(label.values())),
        marks=tuple(marks),
        values=tuple(share(each.interquartile_mean) for each in overview.standings),
        height=_ROW * len(label),
    )


def _labels(overview: Overview) -> dict[Arm, str]:
    """In the order of the standings."""
    return arm_names([each.arm for each in overview.standings])
