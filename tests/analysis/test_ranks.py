"""scipy for Friedman, the tables of Demšar (2006) for the critical difference."""

import numpy as np
import pytest
from scipy import stats

from tl_experiments.analysis.ranks import average_ranks, critical_difference, friedman, nemenyi_q

# Demšar (2006), table 6: AUC of C4.5 with parameters m and cf, neither, one or both of them tuned, on 14 datasets
DEMSAR = np.array(
    [
        [0.763, 0.768, 0.771, 0.798],
        [0.599, 0.591, 0.590, 0.569],
        [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657],
        [0.882, 0.888, 0.886, 0.898],
        [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685],
        [0.583, 0.583, 0.563, 0.625],
        [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000],
        [0.940, 0.962, 0.965, 0.962],
        [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.9751, 0.975],
        [0.957, 0.978, 0.946, 0.970],
    ]
)


def test_ranks_and_tests_of_the_example_of_demsar():
    ranks = average_ranks(DEMSAR)
    assert ranks == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=1e-3)
    # The paper's 9.28 leaves out the correction for ties; scipy and we divide by it. One dataset is a tie of all four
    # (60), three others have one tie of two (6 each), of 14 x 60 possible.
    ties = 1 - (60 + 3 * 6) / (14 * 60)
    assert friedman(DEMSAR).chi_square * ties == pytest.approx(9.28, abs=0.01)
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)


@pytest.mark.parametrize("shape", [(3, 3), (14, 4), (6, 9)])
@pytest.mark.parametrize("ties", [False, True])
def test_friedman_is_that_of_scipy(shape, ties):
    scores = np.random.default_rng(sum(shape)).random(shape)
    scores = scores.round(1) if ties else scores
    expected = stats.friedmanchisquare(*scores.T)
    found = friedman(scores)
    assert (found.chi_square, found.p_value) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))
    n, k = shape
    f = (n - 1) * expected.statistic / (n * (k - 1) - expected.statistic)
    assert found.iman_davenport_p == pytest.approx(stats.f.sf(f, k - 1, (k - 1) * (n - 1)))


def test_ranks_are_those_of_scipy():
    scores = np.random.default_rng(0).random((5, 6)).round(1)
    assert average_ranks(scores) == pytest.approx(stats.rankdata(-scores, axis=1).mean(0))


def test_arms_that_are_all_equal_do_not_differ():
    found = friedman(np.full((4, 3), 0.5))
    assert (found.chi_square, found.p_value, found.iman_davenport_p) == (None, 1.0, 1.0)


def test_datasets_that_all_agree_leave_nothing_to_chance():
    found = friedman(np.tile([0.9, 0.8, 0.7], (5, 1)))
    assert (found.chi_square, found.iman_davenport_f, found.iman_davenport_p) == (pytest.approx(10.0), None, 0.0)


def test_the_quantiles_are_those_of_the_table_of_demsar():
    # Demšar (2006), table 5 (a), 0.05, for 2 to 10 classifiers
    table = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]
    assert [nemenyi_q(k) for k in range(2, 11)] == pytest.approx(table, abs=1.1e-3)


@pytest.mark.parametrize("k", [2, 5, 12, 60])
def test_the_quantiles_are_those_of_the_studentized_range(k):
    assert nemenyi_q(k) == pytest.approx(stats.studentized_range.ppf(0.95, k, 1e6) / np.sqrt(2), rel=1e-4)
