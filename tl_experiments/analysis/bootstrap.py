"""Bootstrap intervals, the same every time: resampling is seeded by what is resampled, not by a clock."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 9_999
IMAGE_RESAMPLES = 1_999  # of many images, where a plain percentile is taken: 60 arms have 1,770 contrasts
CONFIDENCE = 0.95
_SEED = 0


@lru_cache(maxsize=8)
def _draws(n: int) -> NDArray[np.intp]:
    return np.random.default_rng([_SEED, n]).integers(0, n, (RESAMPLES, n))


def bca_of_mean(values: Sequence[float]) -> tuple[float, float]:
    """95% interval of the mean of independent values by the bias-corrected and accelerated bootstrap (Efron, 1987).

    Over few values it is narrower than the t interval, and covers less than it claims: with 5 values of a normal
    distribution 84%. It stands beside the t interval, which decides.

    Args:
        values: 3 or more that are not all equal.
    """
    from scipy.special import ndtr, ndtri

    sample = np.asarray(values, dtype=np.float64)
    n, mean = len(sample), sample.mean()
    means = sample[_draws(n)].mean(1)
    below = ((means < mean).mean() + (means <= mean).mean()) / 2
    left_out = (sample.sum() - sample) / (n - 1)
    away = left_out.mean() - left_out
    acceleration = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    shift = ndtri(below)
    z = shift + ndtri([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    low, high = np.quantile(means, ndtr(shift + z / (1 - acceleration * z)))
    return float(low), float(high)


def percentile_of_mean(values: NDArray[np.float64]) -> tuple[float, float]:
    """95% percentile interval of the mean over many values of which few are distinct, such as one an image.

    Drawing images is drawing how many there are of each value: one multinomial draw a resample, however many images.

    Args:
        values: ``(n,)``.
    """
    distinct, counts = np.unique(values, return_counts=True)
    n = len(values)
    drawn = np.random.default_rng([_SEED, n]).multinomial(n, counts / n, IMAGE_RESAMPLES)
    low, high = np.quantile(drawn @ distinct / n, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def interquartile_mean(groups: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Mean of the middle half of all values, and its 95% stratified bootstrap interval (Agarwal et al., 2021).

    Args:
        groups: Runs of each dataset; runs are drawn anew within each, so every resample has all datasets.

    Returns:
        Mean, low, high.
    """
    rng = np.random.default_rng([_SEED, len(groups)])
    drawn = [np.asarray(group)[rng.integers(0, len(group), (RESAMPLES, len(group)))] for group in groups]
    whole = np.concatenate([np.asarray(group, dtype=np.float64) for group in groups])
    low, high = np.quantile(_middle(np.concatenate(drawn, axis=1)), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(_middle(whole[None])[0]), float(low), float(high)


def _middle(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    cut = rows.shape[1] // 4
    middle: NDArray[np.float64] = np.sort(rows, axis=1)[:, cut : rows.shape[1] - cut].mean(1)
    return middle
