"""Every two arms of a dataset by every test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from tl_experiments.analysis.arms import MIN_SEEDS, ArmRuns, pair_of
from tl_experiments.analysis.findings import Contrast, ImageTests
from tl_experiments.analysis.images import Hits, compare_images
from tl_experiments.analysis.paired import effect_size, sign_flip, wilcoxon
from tl_experiments.analysis.pairing import SEEDS_TEST, PrimaryTest, primary_test, units
from tl_experiments.analysis.statistics import holm
from tl_experiments.analysis.verdict import Decision


def contrasts_of(arms: Sequence[ArmRuns], decision: Decision, hits: Mapping[str, Hits]) -> tuple[Contrast, ...]:
    """All contrasts of one dataset that share a run.

    Args:
        arms: In the order of the table, the recommended one first.
        decision: The verdict, with the corrected p values of its contrasts.
        hits: Job -> the test images that it had right; what is missing is not tested over images.
    """
    tests = {(one, two): primary_test(arms[one], arms[two]) for one, two in combinations(range(len(arms)), 2)}
    tested = [places for places, found in tests.items() if found.seeds >= MIN_SEEDS and _p_value(found) is not None]
    corrected = dict(zip(tested, holm([_p_value(tests[places]) or 0.0 for places in tested]), strict=True))
    verdict = {contrast.other: contrast.p_value for contrast in decision.contrasts}
    contrasts = []
    for (one, two), found in tests.items():
        if found.test is None:
            continue
        first, second = arms[one], arms[two]
        a, b = (_values(arm, found) for arm in (first, second))
        differences = [x - y for x, y in zip(a, b, strict=True)]
        exact = found.name == SEEDS_TEST and len(differences) > 1
        contrasts.append(
            Contrast(
                first=first.arm,
                second=second.arm,
                seeds=found.seeds,
                runs=len(found.pairs),
                difference=found.test.difference,
                primary=found.name,
                p_value=found.test.p_value,
                p_holm=verdict.get(second.arm) if first.arm == decision.recommended else None,
                p_holm_all=corrected.get((one, two)),
                wilcoxon_p=wilcoxon(differences) if exact else None,
                sign_flip_p=sign_flip(differences) if exact else None,
                effect=effect_size(a, b),
                images=_over_images(first, second, found, hits),
            )
        )
    return tuple(contrasts)


def _p_value(found: PrimaryTest) -> float | None:
    return None if found.test is None else found.test.p_value


def _values(arm: ArmRuns, found: PrimaryTest) -> list[float]:
    """One a seed or split, in the order of the shared pairs."""
    values = arm.by_pair("test", "accuracy")
    return list(units({pair: values[pair] for pair in found.pairs}).values())


def _over_images(first: ArmRuns, second: ArmRuns, found: PrimaryTest, hits: Mapping[str, Hits]) -> ImageTests | None:
    one, two = ({pair_of(run): hits.get(run.job_id) for run in arm.runs} for arm in (first, second))
    pairs = [(a, b) for pair in found.pairs if (a := one[pair]) is not None and (b := two[pair]) is not None]
    return compare_images(pairs) if len(pairs) == len(found.pairs) else None
