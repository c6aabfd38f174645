"""McNemar against statsmodels, the bootstrap over images against scipy."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as reference

from tl_experiments.analysis.images import Hits, compare_images, mcnemar


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (3, 9), (12, 12), (40, 21), (0, 8), (500, 430)])
def test_mcnemar_is_that_of_statsmodels(counts):
    first, second = counts
    exact, mid = mcnemar(first, second)
    expected = reference([[50, first], [second, 7]], exact=True).pvalue if sum(counts) else 1.0
    assert exact == pytest.approx(min(1.0, expected))
    if sum(counts):
        fewer = min(counts)
        assert mid == pytest.approx(
            2 * stats.binom.cdf(fewer, sum(counts), 0.5) - stats.binom.pmf(fewer, sum(counts), 0.5)
        )
        assert mid < exact or exact == 1.0


def hits(right, images=None):
    right = np.asarray(right, dtype=bool)
    return Hits(np.arange(len(right)) if images is None else np.asarray(images), right)


def runs(seeds, n, gap, seed=0):
    """Pairs of runs over the same images, of which some are hard for all runs."""
    rng = np.random.default_rng(seed)
    ease = rng.beta(8, 2, n)
    return [(hits(rng.random(n) < np.clip(ease + gap, 0, 1)), hits(rng.random(n) < ease)) for _ in range(seeds)]


@pytest.mark.parametrize("gap", [0.0, 0.05])
def test_the_interval_over_images_is_that_of_scipy(gap):
    pairs = runs(3, 400, gap)
    found = compare_images(pairs)
    per_image = np.mean([one.right.astype(float) - two.right for one, two in pairs], axis=0)
    interval = stats.bootstrap(
        (per_image,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    width = interval.high - interval.low
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.05 * width)
    assert found.images == 400
    assert found.only_first == sum(int((one.right & ~two.right).sum()) for one, two in pairs)
    expected = [
        mcnemar(int((one.right & ~two.right).sum()), int((~one.right & two.right).sum()))[1] for one, two in pairs
    ]
    assert found.mcnemar_p == pytest.approx(expected)
    assert found.mcnemar_combined == pytest.approx(min(1.0, 2 * np.mean(expected)))


def test_a_run_more_on_the_same_images_makes_no_new_images():
    """Five times the same pair of runs is the evidence of one: the interval must not shrink."""
    (pair,) = runs(1, 300, 0.05)
    once, often = compare_images([pair]), compare_images([pair] * 5)
    assert (often.low, often.high) == (once.low, once.high)
    assert often.mcnemar_combined == pytest.approx(min(1.0, 2 * once.mcnemar_combined))


def test_twice_the_mean_keeps_its_level_when_seeds_depend_on_each_other():
    """No difference over 400 worlds, runs of one world alike: at most 5% below 0.05, and some allowance for chance."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(400):
        shared = rng.random((2, 200)) < 0.8
        pairs = [
            tuple(hits(np.where(rng.random(200) < 0.2, rng.random(200) < 0.8, arm)) for arm in shared) for _ in range(3)
        ]
        found += compare_images(pairs).mcnemar_combined < 0.05
    assert found <= 30


def test_images_are_paired_by_number_and_only_shared_ones_count():
    one, two = hits([1, 1, 0, 1], [4, 2, 9, 7]), hits([0, 1, 1], [2, 4, 5])
    found = compare_images([(one, two)])
    assert (found.images, found.only_first, found.only_second) == (2, 1, 0)
    assert compare_images([(hits([1], [0]), hits([1], [1]))]) is None


def test_folds_put_their_images_together():
    folds = [(hits([1, 0], [0, 1]), hits([0, 0], [0, 1])), (hits([1, 1], [2, 3]), hits([1, 0], [2, 3]))]
    found = compare_images(folds)
    assert (found.images, found.only_first, found.only_second) == (4, 2, 0)
