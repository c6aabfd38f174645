"""What the tests say: of each dataset, and over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tl_experiments.analysis.arms import Arm
from tl_experiments.analysis.comparison import arm_names
from tl_experiments.analysis.findings import Contrast, Overview
from tl_experiments.analysis.results import Comparison
from tl_experiments.analysis.verdict import SIGNIFICANCE
from tl_experiments.analysis.wording import interval, listed, p_sign, p_text, plural, share, signed
from tl_experiments.report.charts import Group
from tl_experiments.report.figure import Dot, Figure, Line, Mark, linear, names
from tl_experiments.report.styles import Style

MAX_CONTRASTS = 60  # of other arms with each other; comparison.json has all

_TITLES = (
    *("against", "seeds", "difference", "p", "p, Holm", "Wilcoxon", "sign flip", "Hedges' g", "superiority"),
    *("McNemar", "over images", "right alone"),
)
_OTHER_TITLES = ("arms", "seeds", "difference", "p", "p, Holm over all", "Hedges' g")


def contrasts(group: Group, comparison: Comparison) -> dict[str, Any]:
    """The contrasts of one dataset as tables: of the recommended arm in full, of the others in short."""
    dataset = group.rows[0].arm.dataset
    best = next(verdict.recommended for verdict in comparison.verdicts if verdict.dataset == dataset)
    found = [contrast for contrast in comparison.contrasts if contrast.first.dataset == dataset]
    own = [contrast for contrast in found if contrast.first == best]
    # the surest differences first; those without a test last
    rest = sorted(
        (contrast for contrast in found if contrast.first != best),
        key=lambda contrast: 2.0 if contrast.p_holm_all is None else contrast.p_holm_all,
    )
    shown = rest[:MAX_CONTRASTS]
    return {
        "titles": _TITLES,
        "numbers": range(1, len(_TITLES)),
        "rows": [_row(contrast, group.names) for contrast in own],
        "caption": f"{group.names[best]} against each other arm",
        "explanation": _explanation(own),
        "others": [_other_row(contrast, group.names) for contrast in shown],
        "others_title": f"The other arms with each other: {_of(len(shown), len(rest))}",
        "other_titles": _OTHER_TITLES,
        "other_numbers": range(1, len(_OTHER_TITLES)),
    }


def _row(contrast: Contrast, labels: Mapping[Arm, str]) -> tuple[str, ...]:
    effect, images = contrast.effect, contrast.images
    over_images = ("", "", "")
    if images is not None:
        bounds = f"[{signed(images.low)}, {signed(images.high)}]".replace("+", "")
        over_images = (_p(images.mcnemar_combined), bounds, f"{images.only_first} : {images.only_second}")
    return (
        labels[contrast.second], str(contrast.seeds), _difference(contrast), _p(contrast.p_value),
        _p(contrast.p_holm), _p(contrast.wilcoxon_p), _p(contrast.sign_flip_p), _size(effect.hedges_gz),
        share(effect.superiority), *over_images,
    )  # fmt: skip


def _other_row(contrast: Contrast, labels: Mapping[Arm, str]) -> tuple[str, ...]:
    return (
        f"{labels[contrast.first]} less {labels[contrast.second]}", str(contrast.seeds), _difference(contrast),
        _p(contrast.p_value), _p(contrast.p_holm_all), _size(contrast.effect.hedges_gz),
    )  # fmt: skip


def _explanation(found: list[Contrast]) -> list[str]:
    primary = listed(sorted({contrast.primary for contrast in found}))
    lines = [
        f"p: the {primary} on test accuracy, two-sided; Holm's correction of it over these arms decides the verdict",
        "difference: with its 95% t interval, not corrected",
        "Hedges' g: mean difference over its standard deviation, corrected for few seeds; superiority: probability "
        "that a run of this arm is better than one of the other",
    ]
    if any(contrast.images for contrast in found):
        lines.append(
            "McNemar, over images: the same seeds' runs image by image: twice the mean of the mid-p values, and the "
            "95% bootstrap interval of the difference, images drawn anew"
        )
        lines.append("right alone: images that only this arm had right, and only the other, over all runs")
    return lines


def overview_sentence(overview: Overview) -> str:
    """What Friedman's test says."""
    over = f"over {plural(len(overview.datasets), 'dataset')} and {plural(len(overview.standings), 'arm')}"
    if overview.friedman is None:
        return f"Ranks by test accuracy {over}; Friedman's test needs 3 arms."
    found = overview.friedman
    differ = "the arms differ" if found.p_value < SIGNIFICANCE else "no difference between the arms is shown"
    few = "; its approximation wants 10 datasets and 5 arms" if len(overview.datasets) < 10 else ""
    return f"Friedman's test {over}: {differ} ({p_text(found.p_value)}{few})."


def standing_rows(overview: Overview) -> list[tuple[str, ...]]:
    """A row an arm, best average rank first."""
    label = arm_names([each.arm for each in overview.standings])
    return [
        (
            label[each.arm], f"{each.average_rank:.2f}", share(each.interquartile_mean),
            f"[{share(each.low)}, {share(each.high)}]", _p(each.wilcoxon_p),
        )
        for each in overview.standings
    ]  # fmt: skip


def average_ranks(overview: Overview, styles: Mapping[Arm, Style]) -> tuple[Figure, Figure]:
    """Average ranks with Nemenyi's critical difference (Demsar, 2006), and the interquartile means."""
    ranks: list[Mark] = []
    means: list[Mark] = []
    half = overview.critical_difference / 2
    label_of = arm_names([each.arm for each in overview.standings])
    labels = [label_of[each.arm] for each in overview.standings]
    for place, (each, label) in enumerate(zip(overview.standings, labels, strict=True)):
        style, y = styles[each.arm], place + 0.08
        bar = Style(style.colour)
        rank, mean = each.average_rank, each.interquartile_mean
        ranks += [
            Line(((rank - half, y), (rank + half, y)), bar, weight=2.2),
            Dot(rank, y, style, f"{label}: {rank:.2f}"),
        ]
        tip = f"{label}: {share(mean)} [{share(each.low)}, {share(each.high)}]"
        means += [Line(((each.low, y), (each.high, y)), bar, weight=2.2), Dot(mean, y, style, tip)]
    height = 36 * len(labels)
    ends = [end for each in overview.standings for end in (each.low, each.high)]
    worst = max(each.average_rank for each in overview.standings)
    return (
        Figure(
            name="average-ranks",
            title="Average rank",
            about="1 is best. Bars are half a critical difference to each side: arms whose bars do not overlap differ "
            f"at 5% (Nemenyi; critical difference {overview.critical_difference:.2f}).",
            x=linear("average rank by test accuracy", [1 - half, worst + half]),
            y=names(labels),
            marks=tuple(ranks),
            values=tuple(f"{each.average_rank:.2f}" for each in overview.standings),
            height=height,
        ),
        Figure(
            name="interquartile-means",
            title="Interquartile mean of test accuracy",
            about="Over the middle half of all runs on all datasets, with its 95% stratified bootstrap interval.",
            x=linear("test accuracy", ends, within=(0, 1)),
            y=names(labels),
            marks=tuple(means),
            values=tuple(share(each.interquartile_mean) for each in overview.standings),
            height=height,
        ),
    )


def _difference(contrast: Contrast) -> str:
    return f"{signed(contrast.difference.mean)} {interval(contrast.difference)}".rstrip()


def _p(value: float | None) -> str:
    return "" if value is None else p_sign(value).removeprefix("=")


def _size(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def _of(shown: int, total: int) -> str:
    return plural(total, "contrast") if shown == total else f"{shown} of {plural(total, 'contrast')}"
