"""Tests and effect sizes of paired differences that stand beside the primary test."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tl_experiments.analysis.findings import EffectSize

_EXACT = 20  # differences up to which all 2^n signs are tried: a million sums
_DRAWN = 99_999
_DECIMALS = 12  # differences of accuracies that agree to here are equal: 1 image in a million is 1e-6


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p of the paired permutation test: if nothing differs, each difference could have either sign.

    Exact over all signs up to 20 differences, else over 99,999 draws. It cannot be below ``2 ** (1 - n)``.

    Args:
        differences: ``(n,)``, one a pair, n >= 1.
    """
    size = np.abs(np.round(np.asarray(differences, dtype=np.float64), _DECIMALS))
    observed = abs(np.round(np.asarray(differences), _DECIMALS).sum())
    if len(size) <= _EXACT:
        sums = np.zeros(1)
        for each in size:
            sums = np.concatenate([sums + each, sums - each])
        return float((np.abs(sums) >= observed - 10.0**-_DECIMALS).mean())
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (_DRAWN, len(size)))
    as_far = int((np.abs(signs @ size) >= observed - 10.0**-_DECIMALS).sum())
    return (as_far + 1) / (_DRAWN + 1)  # what was observed is one of the draws


def wilcoxon(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test (1945), exact, with ties at their mean rank; zeros are left out.

    The distribution over all signs is built up rank by rank, so that ties need no approximation.

    Args:
        differences: ``(n,)``, one a pair.
    """
    values = np.round(np.asarray(differences, dtype=np.float64), _DECIMALS)
    values = values[values != 0]
    if len(values) == 0:
        return 1.0
    doubled = np.round(2 * mean_ranks(np.abs(values))).astype(np.int64)  # mean ranks are halves
    ways = np.zeros(doubled.sum() + 1)
    ways[0] = 1.0
    for rank in doubled:
        ways[rank:] += ways[:-rank].copy()
        ways /= 2
    middle = doubled.sum() / 2
    distance = abs(doubled[values > 0].sum() - middle)
    return min(1.0, float(ways[np.abs(np.arange(len(ways)) - middle) >= distance - 1e-9].sum()))


def mean_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1 for the smallest, equals at their mean, ``(n,)``."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def effect_size(first: Sequence[float], second: Sequence[float]) -> EffectSize:
    """Effect sizes of ``first`` over ``second``, paired by position, one pair or more."""
    one, two = (np.round(np.asarray(values, dtype=np.float64), _DECIMALS) for values in (first, second))
    differences = np.round(one - two, _DECIMALS)
    n = len(differences)
    spread = float(differences.std(ddof=1)) if n > 1 else 0.0
    dz = float(differences.mean()) / spread if spread > 0 else None
    superiority = float((one[:, None] > two).mean() + (one[:, None] == two).mean() / 2)
    return EffectSize(
        cohens_dz=dz,
        hedges_gz=None if dz is None or n < 3 else dz * small_sample_factor(n - 1),
        superiority=superiority,
        cliffs_delta=2 * superiority - 1,
    )


def small_sample_factor(degrees: int) -> float:
    """Hedges' (1981) exact factor that takes the bias off a standardised mean, for 2 degrees of freedom or more."""
    return math.exp(math.lgamma(degrees / 2) - math.lgamma((degrees - 1) / 2) - 0.5 * math.log(degrees / 2))
