"""Which arms cost nothing for nothing: the Pareto front of test accuracy against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

OVERALL = "overall"


def not_dominated(accuracy: Sequence[float], costs: Mapping[str, Sequence[float]]) -> list[tuple[str, ...]]:
    """For each arm the costs at which no other dominates it, and ``overall`` where none does with all costs at once.

    An arm dominates another if it is no worse in anything and better in something. Means are compared as they are:
    whether two of them differ beyond chance is another question.

    Args:
        accuracy: Higher is better, one an arm.
        costs: Name -> lower is better, one an arm.
    """
    objectives = {name: _points(accuracy, [cost]) for name, cost in costs.items()}
    objectives[OVERALL] = _points(accuracy, list(costs.values()))
    return [
        tuple(name for name, points in objectives.items() if not any(_dominates(p, points[arm]) for p in points))
        for arm in range(len(accuracy))
    ]


def _points(accuracy: Sequence[float], costs: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    """Higher is better in every coordinate."""
    return [(good, *(-cost[index] for cost in costs)) for index, good in enumerate(accuracy)]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))
