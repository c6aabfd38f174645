"""What weakens a comparison, each in one sentence that names the arms."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from tl_experiments.analysis.arms import Arm, ArmRuns
from tl_experiments.analysis.results import LostJob
from tl_experiments.analysis.wording import listed, plural

_SHOWN = 3  # jobs by name, of many
_GRID = 3  # of two values one is always at the edge


# Trials count alike whether they ran on all seeds or, with tuning_seed, on one: each is one chance to be chosen.
_BUDGET: Mapping[str, Callable[[ArmRuns], int]] = {
    "trial": lambda arm: arm.n_trials,
    "epoch": lambda arm: int(arm.runs[0].config["trainer"]["max_epochs"]),
    "seed": lambda arm: len(arm.seeds),
    "split": lambda arm: len(arm.splits),
}


def budget_warnings(arms: Sequence[ArmRuns], names: Mapping[Arm, str]) -> list[str]:
    """Arms of one dataset that differ in trials, epochs, seeds or splits: the one with more had more chances."""
    warnings = []
    for noun, measure in _BUDGET.items():
        by_value: dict[int, list[str]] = {}
        for arm in arms:
            by_value.setdefault(measure(arm), []).append(names[arm.arm])
        if len(by_value) > 1:
            groups = [f"{plural(value, noun)} for {listed(by_value[value])}" for value in sorted(by_value)]
            warnings.append(f"Unequal budgets: {'; '.join(groups)}.")
    return warnings


def unequal_budgets(arms: Sequence[ArmRuns]) -> dict[Arm, tuple[str, ...]]:
    """Arm -> the parts of its budget, in the plural, that are not what most arms of the dataset had."""
    unequal: dict[Arm, list[str]] = {arm.arm: [] for arm in arms}
    for noun, measure in _BUDGET.items():
        counted = Counter(map(measure, arms))
        usual = max(counted, key=lambda value: (counted[value], value))
        for arm in arms:
            if measure(arm) != usual:
                unequal[arm.arm].append(f"{noun}s")
    return {arm: tuple(parts) for arm, parts in unequal.items()}


def tuning_notes(arms: Sequence[ArmRuns]) -> list[str]:
    """On which seed alone the trials were compared, where that was one of several."""
    several = [run for arm in arms if len(arm.trials) > 1 for run in arm.runs]
    # records from before there was tuning have none
    seeds = {int(seed) for run in several if (seed := run.config.get("tuning_seed")) is not None}
    return [
        f"Trials were chosen on val with seed {seed} alone (tuning_seed={seed}); the chosen ones ran on all seeds."
        for seed in sorted(seeds)
    ]


def search_notes(arms: Sequence[ArmRuns], names: Mapping[Arm, str]) -> list[str]:
    """How many trials of each arm a search left without a result."""
    lost = []
    for arm in arms:
        states = Counter[str]()
        for search in arm.searches:
            states.update(search.states)
        counted = [f"{number} {state}" for state, number in sorted(states.items()) if state != "ok" and number]
        lost += [f"{names[arm.arm]} ({', '.join(counted)})"] if counted else []
    return [f"Trials without a result, which count as tried: {listed(lost)}."] if lost else []


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
    """Tuned numbers whose chosen value is the smallest or largest of 3 or more: a better one may lie beyond.

    Of an interval the ends are known, whether they were tried or not.
    """
    at_edge: dict[str, list[str]] = {}
    for arm in arms:
        trials: list[dict[str, str]] = [json.loads(key) for key in arm.trials]
        chosen: dict[str, str] = json.loads(arm.chosen)
        for key in chosen:
            tried = [number for trial in trials if (number := _number(trial.get(key))) is not None]
            value = _number(chosen[key])
            known = {*tried, *(end for search in arm.searches for end in search.intervals.get(key, ()))}
            if value is not None and len(known) >= _GRID and value in (min(known), max(known)):
                end = "smallest" if value == min(known) else "largest"
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


def unverified_warning(jobs: Sequence[str]) -> list[str]:
    """How many runs have numbers that nobody can compute again, and a few of them by name."""
    if not jobs:
        return []
    shown = listed([*jobs[:_SHOWN], *([f"{len(jobs) - _SHOWN} more"] if len(jobs) > _SHOWN else [])])
    return [f"{plural(len(jobs), 'run')} not verified, since their predictions.parquet is missing: {shown}."]


CHECKS = (budget_warnings, untuned_warnings, rising_warnings, edge_warnings)
