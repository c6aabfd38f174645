"""What weakens a comparison, each in one sentence that names the arms."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from tl_experiments.analysis.arms import Arm, ArmRuns
from tl_experiments.analysis.results import LostJob
from tl_experiments.analysis.wording import listed, plural

_GRID = 3  # of two values one is always at the edge


def budget_warnings(arms: Sequence[ArmRuns], names: Mapping[Arm, str]) -> list[str]:
    """Arms of one dataset that differ in trials, epochs or seeds: the one with more had more chances."""
    measures: dict[str, Callable[[ArmRuns], int]] = {
        "trial": lambda arm: len(arm.trials),
        "epoch": lambda arm: int(arm.runs[0].config["trainer"]["max_epochs"]),
        "seed": lambda arm: len(arm.seeds),
    }
    warnings = []
    for noun, measure in measures.items():
        by_value: dict[int, list[str]] = {}
        for arm in arms:
            by_value.setdefault(measure(arm), []).append(names[arm.arm])
        if len(by_value) > 1:
            groups = [f"{plural(value, noun)} for {listed(by_value[value])}" for value in sorted(by_value)]
            warnings.append(f"Unequal budgets: {'; '.join(groups)}.")
    return warnings


def rising_warnings(arms: Sequence[ArmRuns], names: Mapping[Arm, str]) -> list[str]:
    """Arms of which more than half of the runs ended while still improving: they were cut short."""
    cut_short = []
    for arm in arms:
        rising = sum(run.still_rising for run in arm.runs)
        if 2 * rising > len(arm.runs):
            cut_short.append(f"{names[arm.arm]} ({rising} of {plural(len(arm.runs), 'run')})")
    if not cut_short:
        return []
    return [f"Still rising at the end: {listed(cut_short)}. More trainer.max_epochs may change the comparison."]


def untuned_warnings(arms: Sequence[ArmRuns], _names: Mapping[Arm, str]) -> list[str]:
    """Arms with one trial each, at different learning rates: their rates are compared along with them."""
    if any(len(arm.trials) > 1 for arm in arms) or len({arm.runs[0].learning_rate for arm in arms}) < 2:
        return []
    return [
        "No arm was tuned: each ran at its strategy's own learning rate. optimizer.lr_factor=0.3,1,3 tunes all on val."
    ]


def edge_warnings(arms: Sequence[ArmRuns], names: Mapping[Arm, str]) -> list[str]:
    """Tuned numbers whose chosen value is the smallest or largest of 3 or more: a better one may lie beyond."""
    at_edge: dict[str, list[str]] = {}
    for arm in arms:
        trials: list[dict[str, str]] = [json.loads(key) for key in arm.trials]
        chosen: dict[str, str] = json.loads(arm.chosen)
        for key in chosen:
            tried = [number for trial in trials if (number := _number(trial.get(key))) is not None]
            value = _number(chosen[key])
            if value is not None and len(set(tried)) >= _GRID and value in (min(tried), max(tried)):
                end = "smallest" if value == min(tried) else "largest"
                at_edge.setdefault(f"{key}={value:g}, the {end} tried, was chosen for", []).append(names[arm.arm])
    return [f"{start} {listed(arms)}: a value beyond may be better." for start, arms in at_edge.items()]


def _number(value: str | None) -> float | None:
    parsed = None if value is None else json.loads(value)
    # Texts, lists and switches have no order, and so no edge.
    return float(parsed) if isinstance(parsed, int | float) and not isinstance(parsed, bool) else None


def lost_warning(jobs: Sequence[LostJob]) -> list[str]:
    """How many jobs are in no mean, by state."""
    if not jobs:
        return []
    states = Counter(job.state for job in jobs)
    counted = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    return [f"{plural(len(jobs), 'job')} not in the table: {counted}."]


CHECKS = (budget_warnings, untuned_warnings, rising_warnings, edge_warnings)
