"""Arms over several datasets: average ranks, Friedman's test and Nemenyi's critical difference (Demšar, 2006)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tl_experiments.analysis.findings import Friedman
from tl_experiments.analysis.paired import mean_ranks

_ALPHA = 0.05


def average_ranks(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean rank of each arm, 1 for the best, equals at their mean, ``(n_arms,)``.

    Args:
        scores: Higher is better, ``(n_datasets, n_arms)``.
    """
    ranks: NDArray[np.float64] = _ranks(scores).mean(0)
    return ranks


def friedman(scores: NDArray[np.float64]) -> Friedman:
    """Friedman's test; the approximations want 10 datasets and 5 arms or more (Demšar, 2006).

    Args:
        scores: Higher is better, ``(n_datasets, n_arms)``, 2 datasets and 3 arms or more.
    """
    from scipy.special import chdtrc, fdtrc

    n, k = scores.shape
    ranks = _ranks(scores)
    ties = sum(float((counts**3 - counts).sum()) for counts in (np.unique(row, return_counts=True)[1] for row in ranks))
    correction = 1 - ties / (n * k * (k * k - 1))
    if correction <= 0:
        return Friedman(chi_square=None, p_value=1.0, iman_davenport_f=None, iman_davenport_p=1.0)
    chi = float((12 * n / (k * (k + 1)) * ((ranks.mean(0) - (k + 1) / 2) ** 2).sum()) / correction)
    rest = n * (k - 1) - chi
    f = (n - 1) * chi / rest if rest > 1e-9 else None
    return Friedman(
        chi_square=chi,
        p_value=float(chdtrc(k - 1, chi)),
        iman_davenport_f=f,
        iman_davenport_p=0.0 if f is None else float(fdtrc(k - 1, (k - 1) * (n - 1), f)),
    )


def critical_difference(arms: int, datasets: int) -> float:
    """Difference of average ranks above which two arms differ at 5% by Nemenyi's test (1963).

    Args:
        arms: 2 or more.
        datasets: 1 or more.
    """
    return nemenyi_q(arms) * math.sqrt(arms * (arms + 1) / (6 * datasets))


def nemenyi_q(arms: int) -> float:
    """95% quantile of the range of ``arms`` standard normals, over the root of 2."""
    low, high = 0.0, 20.0
    while high - low > 1e-10:
        middle = (low + high) / 2
        low, high = (middle, high) if _range_cdf(middle, arms) < 1 - _ALPHA else (low, middle)
    return high / math.sqrt(2)


def _range_cdf(width: float, n: int) -> float:
    """Probability that ``n`` standard normals lie within ``width``: the smallest at z, all others above it, within."""
    from scipy.special import ndtr

    z = np.linspace(-8 - width, 8, 4001)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    # The integrand vanishes at both ends, so the plain sum is the trapezoidal rule.
    return float((n * density * (ndtr(z + width) - ndtr(z)) ** (n - 1)).sum() * (z[1] - z[0]))


def _ranks(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    # Means of the same accuracies, summed in another order, differ in the last bits: they are ties.
    rows: Sequence[NDArray[np.float64]] = [mean_ranks(-np.round(row, 12)) for row in scores]
    return np.stack(rows)
