"""What the tests found, as data: of two arms, and of the arms that ran on several datasets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tl_experiments.analysis.arms import Arm
from tl_experiments.analysis.statistics import Estimate


@dataclass(frozen=True, kw_only=True)
class EffectSize:
    """How large a paired difference is, by its spread and by the two samples.

    Args:
        cohens_dz: Mean difference over the standard deviation of the differences (Cohen, 1988); null where that is 0.
        hedges_gz: The same without the bias of few pairs (Hedges, 1981); null as above, and below 3 pairs.
        superiority: Probability that a run of the first arm is better than a run of the second, drawn at random,
            equals counted half (Vargha & Delaney, 2000), in [0, 1].
        cliffs_delta: ``2 * superiority - 1`` (Cliff, 1993), in [-1, 1].
    """

    cohens_dz: float | None
    hedges_gz: float | None
    superiority: float
    cliffs_delta: float


@dataclass(frozen=True, kw_only=True)
class ImageTests:
    """Two arms over the test images, within each pair of runs and over all pairs.

    Args:
        images: Distinct test images that both arms saw.
        only_first: Images that only the first arm had right, summed over the pairs of runs.
        only_second: Images that only the second arm had right, likewise.
        mcnemar_p: Of each pair of runs, two-sided mid-p of McNemar's test, in [0, 1].
        mcnemar_combined: Twice their mean, cut to 1: valid however much the pairs depend on each other, and they do,
            since they share their test images (Rueschendorf, 1982; Vovk & Wang, 2020).
        mcnemar_exact_combined: The same of the exact p values.
        low: Lower end of the 95% interval of the difference in accuracy, images drawn anew with all their runs.
        high: Upper end.
    """

    images: int
    only_first: int
    only_second: int
    mcnemar_p: tuple[float, ...]
    mcnemar_combined: float
    mcnemar_exact_combined: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Two arms of one dataset over the runs that both did, by every test.

    Args:
        first: The arm that stands higher in the table.
        second: The other.
        seeds: Seeds that both ran.
        runs: Pairs of runs with equal seed and split.
        difference: Test accuracy of the first less the second; its t interval is not corrected for several contrasts.
        primary: Name of the primary test of this pair.
        p_value: Two-sided, of the primary test, as it is; null below 2 seeds or splits.
        p_holm: Corrected by Holm (1979) over the contrasts of the recommended arm, which decide the verdict; null for
            those of other arms, and below 3 seeds.
        p_holm_all: Corrected over all contrasts of the dataset with 3 seeds or more.
        wilcoxon_p: Of Wilcoxon's signed-rank test, exact; null where splits overlap, since it has no correction.
        sign_flip_p: Of the paired permutation test; null as above.
        effect: Effect sizes, over seeds or splits.
        images: Tests over the test images; null where predictions of a run are missing.
    """

    first: Arm
    second: Arm
    seeds: int
    runs: int
    difference: Estimate
    primary: str
    p_value: float | None
    p_holm: float | None
    p_holm_all: float | None
    wilcoxon_p: float | None
    sign_flip_p: float | None
    effect: EffectSize
    images: ImageTests | None


@dataclass(frozen=True, kw_only=True)
class Friedman:
    """Whether any arm differs, over datasets.

    Args:
        chi_square: Friedman's statistic (1937), corrected for ties; null where every dataset has all arms equal.
        p_value: By the chi-square distribution with ``arms - 1`` degrees of freedom; 1 where there is no statistic.
        iman_davenport_f: The less conservative F statistic of Iman & Davenport (1980); null where it is infinite, as
            where all datasets rank alike, or undefined.
        iman_davenport_p: Of F; 0 where F is infinite.
    """

    chi_square: float | None
    p_value: float
    iman_davenport_f: float | None
    iman_davenport_p: float


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One arm over all datasets.

    Args:
        arm: Its labels, that of the dataset empty.
        average_rank: Mean over the datasets of its rank by test accuracy, 1 the best.
        interquartile_mean: Of the test accuracy over all runs of all datasets, the middle half of them.
        low: Lower end of its 95% bootstrap interval, runs drawn anew within each dataset; null below 3 runs in any,
            and where all resamples are equal.
        high: Upper end.
        wilcoxon_p: Of the best arm by rank against this one, Wilcoxon's signed-rank test over datasets, Holm over all
            pairs of arms; null for the best itself.
    """

    arm: Arm
    average_rank: float
    interquartile_mean: float
    low: float | None
    high: float | None
    wilcoxon_p: float | None


@dataclass(frozen=True, kw_only=True)
class Overview:
    """The arms that ran on every dataset, over all of them.

    Args:
        datasets: Their names.
        standings: Best average rank first.
        friedman: Whether any arm differs; null below 3 arms.
        critical_difference: Of two average ranks, at 5% (Nemenyi, 1963).
    """

    datasets: tuple[str, ...]
    standings: tuple[Standing, ...]
    friedman: Friedman | None
    critical_difference: float


def read_contrast(content: Mapping[str, Any]) -> Contrast:
    """A contrast from plain values."""
    images = content["images"]
    return Contrast(
        **{
            **content,
            "first": Arm(**content["first"]),
            "second": Arm(**content["second"]),
            "difference": Estimate(**content["difference"]),
            "effect": EffectSize(**content["effect"]),
            "images": None if images is None else ImageTests(**{**images, "mcnemar_p": tuple(images["mcnemar_p"])}),
        }
    )


def read_overview(content: Mapping[str, Any]) -> Overview:
    """An overview from plain values."""
    found = content["friedman"]
    return Overview(
        datasets=tuple(content["datasets"]),
        standings=tuple(Standing(**{**each, "arm": Arm(**each["arm"])}) for each in content["standings"]),
        friedman=None if found is None else Friedman(**found),
        critical_difference=content["critical_difference"],
    )
