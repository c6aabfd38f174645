"""Mean, interval, paired test and its correction: pure functions on floats.

Only numpy and ``scipy.special`` are used, and only when a number is asked for: ``scipy.stats`` takes half a second to
import.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONFIDENCE = 0.95
SMALLEST_BOOTSTRAP = 3  # values: of two there are three resamples
ROUNDING = 1e-12  # differences of accuracies below this are floating-point noise: 1 image in a million is 1e-6


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over runs with its intervals.

    Args:
        n: Number of values; of folds, each the mean over its seeds.
        mean: Their mean.
        sd: Sample standard deviation (divisor n - 1); null where n is 1.
        low: Lower end of the 95% t interval; null where n is 1, and where all values are equal: they say nothing of how
            another would differ. Over folds it is wider (Nadeau & Bengio, 2003).
        high: Upper end of the 95% t interval; null as above.
        bootstrap_low: Lower end of the 95% BCa bootstrap interval; null as above, where n is below 3, and over folds.
        bootstrap_high: Upper end of the 95% BCa bootstrap interval; null as above.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    bootstrap_low: float | None = None
    bootstrap_high: float | None = None

    @property
    def margin(self) -> float | None:
        """Half the width of the t interval; null where there is none."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """The difference of two arms over the runs that both did.

    Args:
        difference: Of the first arm less the second.
        p_value: Two-sided, of the paired t-test, in [0, 1]; null where fewer than 2 pairs are shared.
    """

    difference: Estimate
    p_value: float | None


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t distribution with ``degrees`` >= 1 degrees of freedom, for a probability in (0, 1)."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))


def t_two_sided(t: float, degrees: int) -> float:
    """Probability of a Student t at least as far from 0 as ``t``, in [0, 1]."""
    from scipy.special import stdtr

    return float(2 * stdtr(degrees, -abs(t)))


def estimate(values: Sequence[float], *, overlap: float = 0.0) -> Estimate:
    """Mean, standard deviation and 95% intervals.

    Args:
        values: One a run, independent unless ``overlap`` says otherwise.
        overlap: Test images for each image not in test, where the values come from resampled splits of one dataset:
            their training sets overlap, and the variance of their mean is ``(1 / n + overlap) * sd ** 2`` (Nadeau &
            Bengio, 2003) instead of ``sd ** 2 / n``.

    Raises:
        ValueError: There is no value.
    """
    if not values:
        raise ValueError("estimate: 0 values, expected 1 or more")
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Estimate(n=1, mean=mean, sd=None, low=None, high=None)
    if max(values) - min(values) <= ROUNDING:
        return Estimate(n=n, mean=mean, sd=0.0, low=None, high=None)
    sd = statistics.stdev(values)
    margin = t_quantile((1 + CONFIDENCE) / 2, n - 1) * sd * math.sqrt(1 / n + overlap)
    low, high = _bootstrap(values) if n >= SMALLEST_BOOTSTRAP and not overlap else (None, None)
    return Estimate(
        n=n, mean=mean, sd=sd, low=mean - margin, high=mean + margin, bootstrap_low=low, bootstrap_high=high
    )


def paired_test(first: Mapping[Any, float], second: Mapping[Any, float], *, overlap: float = 0.0) -> PairedTest | None:
    """Paired t-test of ``first`` less ``second`` over the keys they share; null where they share none.

    Differences that are all equal have no spread to test against: p is 1 where they are 0, and elsewhere that of the
    exact sign-flip test, 2 ** (1 - n), so that three equal differences are no proof.

    Args:
        first: Seed, or split -> value.
        second: As ``first``.
        overlap: As of ``estimate``: above 0 it is the corrected resampled t-test (Nadeau & Bengio, 2003).
    """
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return None
    difference = estimate([first[key] - second[key] for key in shared], overlap=overlap)
    if difference.sd is None:
        return PairedTest(difference=difference, p_value=None)
    if difference.sd == 0:
        return PairedTest(
            difference=difference, p_value=1.0 if abs(difference.mean) <= ROUNDING else 2.0 ** (1 - difference.n)
        )
    t = difference.mean / (difference.sd * math.sqrt(1 / difference.n + overlap))
    return PairedTest(difference=difference, p_value=t_two_sided(t, difference.n - 1))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Step-down p values that keep the family-wise error (Holm, 1979), in the order given, each in [0, 1]."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        # The running maximum keeps the order: a larger p value never ends with the smaller adjusted one.
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return tuple(adjusted)


def _bootstrap(values: Sequence[float]) -> tuple[float, float]:
    from tl_experiments.analysis.bootstrap import bca_of_mean

    return bca_of_mean(values)
