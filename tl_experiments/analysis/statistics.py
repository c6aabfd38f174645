"""Mean, interval, paired test and its correction: pure functions on floats.

Only ``scipy.special`` is used, and only when a number is asked for: ``scipy.stats`` takes half a second to import.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONFIDENCE = 0.95
ROUNDING = 1e-12  # differences of accuracies below this are floating-point noise: 1 image in a million is 1e-6


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds with its t interval.

    Args:
        n: Number of values.
        mean: Their mean.
        sd: Sample standard deviation (divisor n - 1); null where n is 1.
        low: Lower end of the 95% interval; null where n is 1.
        high: Upper end of the 95% interval; null where n is 1.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None

    @property
    def margin(self) -> float | None:
        """Half the width of the interval; null where n is 1."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """The difference of two arms over the seeds that both ran.

    Args:
        difference: Of the first arm less the second.
        p_value: Two-sided, of the paired t-test, in [0, 1]; null where fewer than 2 seeds are shared.
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


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation and 95% t interval of independent values.

    Raises:
        ValueError: There is no value.
    """
    if not values:
        raise ValueError("estimate: 0 values, expected 1 or more")
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Estimate(n=1, mean=mean, sd=None, low=None, high=None)
    if max(values) - min(values) <= ROUNDING:
        return Estimate(n=n, mean=mean, sd=0.0, low=mean, high=mean)
    sd = statistics.stdev(values)
    margin = t_quantile((1 + CONFIDENCE) / 2, n - 1) * sd / math.sqrt(n)
    return Estimate(n=n, mean=mean, sd=sd, low=mean - margin, high=mean + margin)


def paired_test(first: Mapping[Any, float], second: Mapping[Any, float]) -> PairedTest | None:
    """Paired t-test of ``first`` less ``second`` over the keys they share; null where they share none.

    Differences that are all equal have no spread to test against: p is 1 where they are 0, and elsewhere that of the
    exact sign-flip test, 2 ** (1 - n), so that three equal differences are no proof.

    Args:
        first: Seed, or seed and split -> value.
        second: As ``first``.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    difference = estimate([first[seed] - second[seed] for seed in seeds])
    if difference.sd is None:
        return PairedTest(difference=difference, p_value=None)
    if difference.sd == 0:
        return PairedTest(
            difference=difference, p_value=1.0 if abs(difference.mean) <= ROUNDING else 2.0 ** (1 - difference.n)
        )
    t = difference.mean / (difference.sd / math.sqrt(difference.n))
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
