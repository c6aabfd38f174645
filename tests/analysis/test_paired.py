"""scipy.stats is the reference for every test of paired differences, Hedges' own table for his factor."""

import numpy as np
import pytest
from scipy import stats

from tl_experiments.analysis.bootstrap import RESAMPLES, bca_of_mean, interquartile_mean
from tl_experiments.analysis.paired import effect_size, sign_flip, small_sample_factor, wilcoxon
from tl_experiments.analysis.statistics import estimate, paired_test


def samples(n, seed, images=None):
    """Accuracies of two arms; with ``images`` they are counted, so that differences tie and vanish."""
    rng = np.random.default_rng(seed)
    one, two = rng.normal(0.9, 0.02, n), rng.normal(0.89, 0.02, n)
    return (one, two) if images is None else (np.round(one * images) / images, np.round(two * images) / images)


@pytest.mark.parametrize("n", [3, 5, 8, 12])
@pytest.mark.parametrize("seed", range(3))
def test_wilcoxon_without_ties_is_that_of_scipy(n, seed):
    one, two = samples(n, seed)
    assert wilcoxon((one - two).tolist()) == pytest.approx(stats.wilcoxon(one, two, method="exact").pvalue, rel=1e-9)


@pytest.mark.parametrize("n", [5, 7, 10])
@pytest.mark.parametrize("seed", range(4))
def test_wilcoxon_with_ties_and_zeros_is_the_permutation_of_its_ranks(n, seed):
    one, two = samples(n, seed, images=50)
    differences = np.round(one - two, 12)
    kept = differences[differences != 0]
    ranks = np.sign(kept) * stats.rankdata(np.abs(kept))
    expected = stats.permutation_test((ranks,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert wilcoxon(differences.tolist()) == pytest.approx(expected.pvalue, rel=1e-9)


def test_wilcoxon_of_many_pairs_approaches_the_normal():
    differences = np.random.default_rng(0).normal(0.002, 0.02, 200)
    expected = stats.wilcoxon(differences, method="asymptotic", correction=False).pvalue
    assert wilcoxon(differences.tolist()) == pytest.approx(expected, rel=0.02)


def test_no_difference_at_all():
    assert (wilcoxon([0.0, 0.0]), sign_flip([0.0, 0.0])) == (1.0, 1.0)


@pytest.mark.parametrize("n", [2, 5, 9])
@pytest.mark.parametrize("images", [None, 40])
def test_sign_flip_is_that_of_scipy(n, images):
    one, two = samples(n, n, images)
    expected = stats.permutation_test(
        (np.round(one - two, 12),), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip((one - two).tolist()) == pytest.approx(expected.pvalue, rel=1e-9)


def test_sign_flip_of_more_pairs_than_can_be_tried_is_drawn_and_always_the_same():
    one, two = samples(40, 3)
    first = sign_flip((one - two).tolist())
    assert first == sign_flip((one - two).tolist())
    assert first == pytest.approx(stats.ttest_rel(one, two).pvalue, rel=0.2)


@pytest.mark.parametrize("n", [3, 5, 10, 30])
def test_bca_is_that_of_scipy(n):
    values = np.random.default_rng(n).lognormal(0, 1, n)  # skewed, so that the corrections matter
    draws = np.random.default_rng([0, n])  # the draws that ours takes: the intervals must be equal, not only alike
    expected = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=draws).confidence_interval
    assert bca_of_mean(values.tolist()) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_bootstrap_intervals_are_the_same_every_time():
    values = [0.9, 0.91, 0.95, 0.93]
    ours = estimate(values)
    assert (ours.bootstrap_low, ours.bootstrap_high) == bca_of_mean(values)
    assert ours.bootstrap_low > ours.low  # few values: narrower than t, as its docstring says


@pytest.mark.parametrize(("n", "there"), [(1, False), (2, False), (3, True)])
def test_two_values_are_not_resampled(n, there):
    assert (estimate([0.9, 0.8, 0.7][:n]).bootstrap_low is not None) is there


def test_the_corrected_resampled_t_test_of_the_paper():
    """Nadeau & Bengio (2003), by hand with scipy's t: 10 splits of 90% and 10%, variance times 1/10 + 1/9."""
    one, two = samples(10, 5)
    d = one - two
    t = d.mean() / np.sqrt((1 / 10 + 1 / 9) * d.var(ddof=1))
    expected = 2 * stats.t.sf(abs(t), 9)
    ours = paired_test(dict(enumerate(one)), dict(enumerate(two)), overlap=1 / 9)
    assert ours.p_value == pytest.approx(expected)
    assert ours.p_value > stats.ttest_rel(one, two).pvalue
    margin = stats.t.ppf(0.975, 9) * np.sqrt((1 / 10 + 1 / 9) * d.var(ddof=1))
    assert ours.difference.margin == pytest.approx(margin)
    assert ours.difference.bootstrap_low is None  # drawing folds as if they were independent would be too narrow


@pytest.mark.parametrize("seed", range(3))
def test_effect_sizes(seed):
    one, two = samples(8, seed, images=60)
    ours = effect_size(one.tolist(), two.tolist())
    d = one - two
    # d_z is t over the root of n; superiority is the Mann-Whitney statistic over the number of pairs
    assert ours.cohens_dz == pytest.approx(stats.ttest_rel(one, two).statistic / np.sqrt(8))
    assert ours.hedges_gz == pytest.approx(ours.cohens_dz * (1 - 3 / (4 * 7 - 1)), rel=2e-3)
    expected = stats.mannwhitneyu(np.round(one, 12), np.round(two, 12)).statistic / 64
    assert ours.superiority == pytest.approx(expected)
    assert ours.cliffs_delta == pytest.approx(np.mean([np.sign(round(a - b, 12)) for a in one for b in two]))
    assert d.std() > 0


def test_hedges_factor_is_in_his_table():
    # Hedges (1981), table 1: J(m) for m = 2, 5, 10, 20 degrees of freedom
    assert [small_sample_factor(m) for m in (2, 5, 10, 20)] == pytest.approx([0.5642, 0.8408, 0.9228, 0.9619], abs=1e-4)


def test_effect_sizes_without_spread():
    ours = effect_size([0.9, 0.8], [0.8, 0.7])
    assert (ours.cohens_dz, ours.hedges_gz) == (None, None)
    assert ours.superiority == 0.875  # 0.9 over both, 0.8 over 0.7, and equal to 0.8


def test_the_interquartile_mean_is_a_trimmed_mean():
    rng = np.random.default_rng(0)
    groups = [rng.normal(mean, 0.02, 5).tolist() for mean in (0.5, 0.9, 0.7, 0.95)]
    mean, low, high = interquartile_mean(groups)
    assert mean == pytest.approx(stats.trim_mean(np.concatenate(groups), 0.25))
    assert low < mean < high
    assert high - low < 0.1  # of runs, not of datasets, which lie far apart
