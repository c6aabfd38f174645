"""The statistics behind the verdict as CSV: all contrasts, the arms over all datasets, the classes."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from tl_experiments.analysis.arms import Arm
from tl_experiments.analysis.findings import Contrast, Overview
from tl_experiments.safe_text import csv_text

if TYPE_CHECKING:
    from tl_experiments.metrics.scores import PerClass

_ARM = ("backbone", "head", "freeze_strategy")
_PER_CLASS = ("support", "precision", "recall", "f1", "auroc")


def contrasts_csv(contrasts: Sequence[Contrast]) -> str:
    """Every contrast by every test at full precision, one a row; a header alone where there is none."""
    return _written(_CONTRAST_COLUMNS, map(_contrast, contrasts))


def _contrast(contrast: Contrast) -> dict[str, object]:
    difference, effect, images = contrast.difference, contrast.effect, contrast.images
    over_images: dict[str, object] = {}
    if images is not None:
        over_images = {
            "test_images": images.images,
            "only_first_right": images.only_first,
            "only_second_right": images.only_second,
            "mcnemar_midp_each_run": " ".join(map(repr, images.mcnemar_p)),
            "mcnemar_midp": images.mcnemar_combined,
            "mcnemar_exact": images.mcnemar_exact_combined,
            "difference_low_images": images.low,
            "difference_high_images": images.high,
        }
    return {
        "dataset": csv_text(contrast.first.dataset),
        **{f"first_{key}": csv_text(getattr(contrast.first, key)) for key in _ARM},
        **{f"second_{key}": csv_text(getattr(contrast.second, key)) for key in _ARM},
        "seeds": contrast.seeds,
        "runs": contrast.runs,
        "difference": difference.mean,
        "difference_sd": difference.sd,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "difference_low_bootstrap": difference.bootstrap_low,
        "difference_high_bootstrap": difference.bootstrap_high,
        "primary_test": contrast.primary,
        "p_value": contrast.p_value,
        "p_holm_verdict": contrast.p_holm,
        "p_holm_all": contrast.p_holm_all,
        "wilcoxon_p": contrast.wilcoxon_p,
        "sign_flip_p": contrast.sign_flip_p,
        "cohens_dz": effect.cohens_dz,
        "hedges_gz": effect.hedges_gz,
        "superiority": effect.superiority,
        "cliffs_delta": effect.cliffs_delta,
        **over_images,
    }


_CONTRAST_COLUMNS = (
    *("dataset", *(f"{place}_{key}" for place in ("first", "second") for key in _ARM)),
    *("seeds", "runs", "difference", "difference_sd", "difference_low", "difference_high"),
    *("difference_low_bootstrap", "difference_high_bootstrap"),
    *("primary_test", "p_value", "p_holm_verdict", "p_holm_all", "wilcoxon_p", "sign_flip_p"),
    *("cohens_dz", "hedges_gz", "superiority", "cliffs_delta"),
    *("test_images", "only_first_right", "only_second_right", "mcnemar_midp_each_run", "mcnemar_midp", "mcnemar_exact"),
    *("difference_low_images", "difference_high_images"),
)


def overview_csv(overview: Overview | None) -> str:
    """The arms that ran on every dataset, best average rank first; a header alone where there are none."""
    rows: list[dict[str, object]] = []
    if overview is not None:
        found = overview.friedman
        shared = {
            "datasets": len(overview.datasets),
            "critical_difference": overview.critical_difference,
            "friedman_chi_square": None if found is None else found.chi_square,
            "friedman_p": None if found is None else found.p_value,
            "iman_davenport_p": None if found is None else found.iman_davenport_p,
        }
        for each in overview.standings:
            rows.append(
                {
                    **{key: csv_text(getattr(each.arm, key)) for key in _ARM},
                    "average_rank": each.average_rank,
                    "interquartile_mean": each.interquartile_mean,
                    "interquartile_mean_low": each.low,
                    "interquartile_mean_high": each.high,
                    "wilcoxon_p_holm_all_pairs": each.wilcoxon_p,
                    **shared,
                }
            )
    columns = (
        *(*_ARM, "average_rank", "interquartile_mean", "interquartile_mean_low", "interquartile_mean_high"),
        *("wilcoxon_p_holm_all_pairs", "datasets", "critical_difference", "friedman_chi_square", "friedman_p"),
        "iman_davenport_p",
    )
    return _written(columns, rows)


def per_class_csv(tables: Mapping[Arm, tuple[Sequence[str], Sequence[PerClass]]]) -> str:
    """Each class of each arm on test, means over the runs of the chosen trial; empty where no run has a number.

    Args:
        tables: Arm -> class names, and a table a run.
    """
    rows: list[dict[str, object]] = []
    for arm, (classes, runs) in tables.items():
        for label, name in enumerate(classes):
            labels = {key: csv_text(getattr(arm, key)) for key in ("dataset", *_ARM)}
            means = {key: _mean([float(getattr(run, key)[label]) for run in runs]) for key in _PER_CLASS}
            rows.append({**labels, "class": csv_text(name), "runs": len(runs), **means})
    return _written(("dataset", *_ARM, "class", "runs", *_PER_CLASS), rows)


def _mean(values: Sequence[float]) -> float | None:
    """Of the runs that have a number: a class that is absent from a fold's test images has none there."""
    there = [value for value in values if not math.isnan(value)]
    return math.fsum(there) / len(there) if there else None


def _written(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
