"""Whole comparisons of made-up worlds: how often equal arms are called different, and a real difference is found.

Runs of a seed share its luck; what is left of it in the paired difference has a standard deviation of 2 points. Val and
test of a run are drawn apart, and val chooses, as in a real comparison.
"""

import re

import numpy as np
import pytest

from tl_experiments.analysis.comparison import compare_records

SD = 0.02  # of the paired difference: each of the two arms has it over the root of 2
NAMES = ("full", "lp_ft", "feature_extraction", "from_scratch")


def compared(make_record, rng, means, seeds):
    luck = rng.normal(0, 0.03, (2, seeds))
    own = rng.normal(0, SD / np.sqrt(2), (2, len(means), seeds))
    val, test = np.array(means)[:, None] + luck[:, None] + own
    return compare_records(
        make_record(name, seed, val=val[arm, seed], test=test[arm, seed])
        for arm, name in enumerate(NAMES[: len(means)])
        for seed in range(seeds)
    )


def called_different(comparison):
    return any(contrast.p_holm is not None and contrast.p_holm < 0.05 for contrast in comparison.contrasts)


@pytest.mark.parametrize(("arms", "seeds"), [(2, 3), (2, 5), (2, 10), (4, 5)])
def test_equal_arms_are_called_different_in_at_most_18_of_200(make_record, arms, seeds):
    """Among four arms, any one of the three contrasts counts: that is what Holm is for."""
    rng = np.random.default_rng(arms * 100 + seeds)
    called = 0
    for _ in range(200):
        comparison = compared(make_record, rng, [0.85] * arms, seeds)
        called += called_different(comparison)
        said = comparison.verdicts[0].sentence
        assert bool(re.search("better|worse|helps:|hurts:|does not help", said)) == called_different(comparison)
    assert called <= 18


def test_a_difference_of_3_points_is_found_in_at_least_80_percent(make_record):
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(100):
        (contrast,) = compared(make_record, rng, [0.88, 0.85], 10).contrasts
        # Val may choose the worse arm; the test then says that it is worse, which is found as well.
        better = contrast.first if contrast.difference.mean > 0 else contrast.second
        found += contrast.p_holm < 0.05 and better.freeze_strategy == "full"
    assert found >= 80
