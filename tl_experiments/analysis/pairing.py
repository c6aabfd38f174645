"""Two arms over the runs that both did: which differences there are, and what the primary test says of them.

Over seeds that is the paired t-test. Over folds, or other splits made anew, training sets overlap and the t-test is too
sure of itself: there each split counts once, as the mean over its seeds, and the test is the corrected resampled t-test
(Nadeau & Bengio, 2003; Bouckaert & Frank, 2004, for repeated folds).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from tl_experiments.analysis.arms import ArmRuns, Pair
from tl_experiments.analysis.statistics import Estimate, PairedTest, estimate, paired_test

SEEDS_TEST, SPLITS_TEST = "paired t-test", "corrected resampled t-test"


@dataclass(frozen=True, kw_only=True)
class PrimaryTest:
    """The primary test of two arms.

    Args:
        test: Difference and p; null where the arms share no run.
        name: Of the test.
        seeds: Seeds that both arms ran on a common split.
        pairs: What both arms ran, in order.
    """

    test: PairedTest | None
    name: str
    seeds: int
    pairs: tuple[Pair, ...]


def primary_test(first: ArmRuns, second: ArmRuns, split: str = "test", metric: str = "accuracy") -> PrimaryTest:
    """Test ``first`` less ``second``.

    Args:
        first: One arm.
        second: Another of the same dataset.
        split: Whose metric.
        metric: Which.
    """
    one, two = first.by_pair(split, metric), second.by_pair(split, metric)
    pairs = tuple(sorted(one.keys() & two.keys()))
    overlap = overlap_of(first, pairs)
    a, b = (units({pair: values[pair] for pair in pairs}) for values in (one, two))
    test = paired_test(a, b, overlap=overlap)
    return PrimaryTest(
        test=test,
        name=SPLITS_TEST if overlap else SEEDS_TEST,
        seeds=len({pair.seed for pair in pairs}),
        pairs=pairs,
    )


def estimate_of(arm: ArmRuns, split: str = "test", metric: str = "accuracy") -> Estimate:
    """Mean and intervals of a metric over an arm's runs."""
    values = arm.by_pair(split, metric)
    return estimate(list(units(values).values()), overlap=overlap_of(arm, tuple(values)))


def units(values: Mapping[Pair, float]) -> dict[object, float]:
    """What counts as one observation: a seed, or with several splits a split, as the mean over its seeds.

    Where seeds and label subsets both vary, runs that share either are not independent: the one of which there are
    fewer counts. Of a single seed, subsets count.
    """
    splits, seeds, subsets = ({getattr(pair, name) for pair in values} for name in ("split", "seed", "subset_seed"))
    by_subset = len(subsets) > 1 and (len(seeds) == 1 or len(subsets) < len(seeds))
    by_unit: dict[object, list[float]] = defaultdict(list)
    for pair, value in values.items():
        by_unit[pair.split if len(splits) > 1 else pair.subset_seed if by_subset else pair.seed].append(value)
    return {unit: fmean(of_unit) for unit, of_unit in by_unit.items()}


def overlap_of(arm: ArmRuns, pairs: tuple[Pair, ...]) -> float:
    """Test images for each image not in test, where ``pairs`` have several splits; 0 with one split."""
    if len({pair.split for pair in pairs}) < 2:
        return 0.0
    dataset = arm.runs[0].config["dataset"]
    if folds := dataset.get("folds"):  # records from before there were folds have none
        return 1 / (int(folds) - 1)
    test = float(dataset["test_fraction"])
    return test / (1 - test)
