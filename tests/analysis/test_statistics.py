"""scipy.stats is the reference for intervals and tests; Holm is compared with published numbers."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from tl_experiments.analysis.statistics import estimate, holm, paired_test, t_quantile


@pytest.mark.parametrize("n", [2, 3, 5, 30])
@pytest.mark.parametrize("scale", [1e-4, 0.02, 10.0])
def test_estimate_matches_scipy(n, scale):
    values = np.random.default_rng(n).normal(0.9, scale, n)
    ours = estimate(values.tolist())
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert (ours.n, ours.mean, ours.sd) == (n, pytest.approx(values.mean()), pytest.approx(values.std(ddof=1)))
    assert (ours.low, ours.high) == (pytest.approx(low, rel=1e-9), pytest.approx(high, rel=1e-9))
    assert ours.margin == pytest.approx((high - low) / 2)


def test_interval_of_a_textbook_t_table():
    # Student's t, two-sided 95%, 4 degrees of freedom: 2.776
    assert t_quantile(0.975, 4) == pytest.approx(2.776, abs=5e-4)


def test_one_value_has_no_interval():
    ours = estimate([0.9])
    assert (ours.n, ours.mean, ours.sd, ours.low, ours.high, ours.margin) == (1, 0.9, None, None, None, None)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_equal_values_have_no_interval(n):
    ours = estimate([0.9] * n)
    assert (ours.n, ours.mean, ours.sd) == (n, 0.9, 0.0)
    assert (ours.low, ours.high, ours.margin, ours.bootstrap_low, ours.bootstrap_high) == (None,) * 5


def test_no_value_is_an_error():
    with pytest.raises(ValueError, match="0 values, expected 1 or more"):
        estimate([])


@pytest.mark.parametrize("seed", range(5))
def test_paired_test_matches_ttest_rel(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(0.9, 0.02, 6), rng.normal(0.89, 0.02, 6)
    reference = stats.ttest_rel(first, second)
    ours = paired_test(dict(enumerate(first)), dict(enumerate(second)))
    assert ours.p_value == pytest.approx(reference.pvalue, rel=1e-9)
    interval = reference.confidence_interval(0.95)
    assert (ours.difference.low, ours.difference.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_pairs_are_by_seed_not_by_position():
    ours = paired_test({7: 0.9, 1: 0.5, 3: 0.1}, {1: 0.4, 7: 0.8, 9: 0.0})
    assert ours.difference.n == 2
    assert ours.difference.mean == pytest.approx(0.1)


@pytest.mark.parametrize(("gap", "p_value"), [(0.0, 1.0), (0.01, 0.25), (-0.01, 0.25)])
def test_equal_differences(gap, p_value):
    second = {0: 0.8, 1: 0.7, 2: 0.9}
    ours = paired_test({seed: value + gap for seed, value in second.items()}, second)
    assert ours.p_value == p_value
    assert (ours.difference.mean, ours.difference.low) == (pytest.approx(gap), None)


def test_one_shared_seed_has_no_p_value_and_none_no_test():
    assert paired_test({0: 0.9, 1: 0.8}, {1: 0.7, 2: 0.6}).p_value is None
    assert paired_test({0: 0.9}, {1: 0.7}) is None


def test_holm_matches_the_worked_example_of_the_encyclopedia():
    # "Holm-Bonferroni method", Wikipedia: of p = 0.01, 0.04, 0.03, 0.005 at 0.05 exactly H1 and H4 are rejected.
    adjusted = holm([0.01, 0.04, 0.03, 0.005])
    assert adjusted == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert [p < 0.05 for p in adjusted] == [True, False, False, True]


def test_holm_rejects_what_the_15_p_values_of_benjamini_and_hochberg_allow():
    # Benjamini & Hochberg (1995), section 4: Bonferroni and Hochberg both reject 3 of these; Holm lies between the two.
    given = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
    given += [0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    adjusted = holm(given)
    assert [p <= 0.05 for p in adjusted] == [True] * 3 + [False] * 12
    assert adjusted[:4] == pytest.approx((0.0015, 0.0056, 0.0247, 0.1140))


def test_holm_at_the_edges():
    assert holm([]) == ()
    assert holm([0.2]) == (0.2,)
    assert holm([0.9, 0.8]) == (1.0, 1.0)


def test_scipy_stats_is_never_imported():
    code = (
        "import sys; from tl_experiments.analysis.statistics import paired_test;"
        "paired_test({0: .1, 1: .3, 2: .7}, {0: .2, 1: .1, 2: .2}); assert 'scipy.stats' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_means_do_not_drift():
    assert estimate([0.1] * 10).mean == 0.1
    assert math.isclose(estimate([0.1, 0.2, 0.3]).mean, 0.2)
