"""The arms that ran on every dataset, over all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from tl_experiments.analysis.arms import MIN_SEEDS, Arm, ArmRuns
from tl_experiments.analysis.bootstrap import interquartile_mean
from tl_experiments.analysis.findings import Overview, Standing
from tl_experiments.analysis.paired import wilcoxon
from tl_experiments.analysis.ranks import average_ranks, critical_difference, friedman
from tl_experiments.analysis.statistics import holm
from tl_experiments.analysis.wording import listed


def repeated_images(arms: Sequence[ArmRuns]) -> list[str]:
    """Datasets that are the same images, with other labels of them used: ranks take them for independent."""
    by_content: dict[frozenset[object], set[str]] = defaultdict(set)
    for arm in arms:
        by_content[frozenset(run.data["fingerprint"] for run in arm.runs)].add(arm.arm.dataset)
    return [
        f"{listed(sorted(labels))} are the same images with other labels used: over all datasets each counts as one of "
        "its own, so that ranks and their tests look surer than they are."
        for labels in by_content.values()
        if len(labels) > 1
    ]


def overview_of(arms: Sequence[ArmRuns]) -> Overview | None:
    """Rank and test the arms that every dataset has; null where there are fewer than 2 datasets or shared arms.

    Args:
        arms: Of all datasets.
    """
    by_arm: dict[Arm, dict[str, list[float]]] = defaultdict(dict)
    for arm in arms:
        by_arm[replace(arm.arm, dataset="")][arm.arm.dataset] = list(arm.by_pair("test", "accuracy").values())
    datasets = sorted({arm.arm.dataset for arm in arms})
    everywhere = sorted(arm for arm, found in by_arm.items() if len(found) == len(datasets))
    if len(datasets) < 2 or len(everywhere) < 2:
        return None
    scores = np.array([[np.mean(by_arm[arm][dataset]) for arm in everywhere] for dataset in datasets])
    ranks = average_ranks(scores)
    order = sorted(range(len(everywhere)), key=lambda index: (ranks[index], everywhere[index]))
    p_values = [None, *against_the_first(scores[:, order])]
    # Of fewer than 3 runs the bootstrap has next to nothing to draw from.
    enough = min(len(by_arm[arm][dataset]) for arm in everywhere for dataset in datasets) >= MIN_SEEDS
    middle = [interquartile_mean([by_arm[everywhere[index]][dataset] for dataset in datasets]) for index in order]
    return Overview(
        datasets=tuple(datasets),
        standings=tuple(
            Standing(
                arm=everywhere[index],
                average_rank=float(ranks[index]),
                interquartile_mean=mean,
                low=low if enough and low < high else None,
                high=high if enough and low < high else None,
                wilcoxon_p=p_value,
            )
            for index, p_value, (mean, low, high) in zip(order, p_values, middle, strict=True)
        ),
        friedman=friedman(scores) if len(everywhere) > 2 else None,
        critical_difference=critical_difference(len(everywhere), len(datasets)),
    )


def against_the_first(scores: NDArray[np.float64]) -> tuple[float, ...]:
    """p of Wilcoxon's signed-rank test over datasets of the first arm against each other one.

    Which arm is first was seen in these scores: the best of equal arms looks better than any one named before. So Holm
    corrects over all pairs of arms, of which these are some.

    Args:
        scores: ``(n_datasets, n_arms)``, the best arm first.
    """
    pairs = list(combinations(range(scores.shape[1]), 2))
    corrected = holm([wilcoxon((scores[:, one] - scores[:, two]).tolist()) for one, two in pairs])
    return tuple(p_value for (one, _), p_value in zip(pairs, corrected, strict=True) if one == 0)
