"""The contrasts behind a verdict, every test of them beside the primary one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tl_experiments.analysis.arms import Arm
from tl_experiments.analysis.findings import Contrast
from tl_experiments.analysis.results import Comparison
from tl_experiments.analysis.wording import interval, listed, p_sign, plural, share, signed
from tl_experiments.report.charts import Group

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
        over_images = (p_cell(images.mcnemar_combined), bounds, f"{images.only_first} : {images.only_second}")
    return (
        labels[contrast.second], str(contrast.seeds), _difference(contrast), p_cell(contrast.p_value),
        p_cell(contrast.p_holm), p_cell(contrast.wilcoxon_p), p_cell(contrast.sign_flip_p), _size(effect.hedges_gz),
        share(effect.superiority), *over_images,
    )  # fmt: skip


def _other_row(contrast: Contrast, labels: Mapping[Arm, str]) -> tuple[str, ...]:
    return (
        f"{labels[contrast.first]} less {labels[contrast.second]}", str(contrast.seeds), _difference(contrast),
        p_cell(contrast.p_value), p_cell(contrast.p_holm_all), _size(contrast.effect.hedges_gz),
    )  # fmt: skip


def _explanation(found: Sequence[Contrast]) -> list[str]:
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


def _difference(contrast: Contrast) -> str:
    return f"{signed(contrast.difference.mean)} {interval(contrast.difference)}".rstrip()


def p_cell(value: float | None) -> str:
    """A p value without its letter; empty where nothing was tested."""
    return "" if value is None else p_sign(value).removeprefix("=")


def _size(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def _of(shown: int, total: int) -> str:
    return plural(total, "contrast") if shown == total else f"{shown} of {plural(total, 'contrast')}"
