"""One arm as a row of the table: what its chosen trial reached, and what all of its trials cost."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

from tl_experiments.analysis.arms import MIN_SEEDS, Arm, ArmRuns, control_of
from tl_experiments.analysis.caveats import unequal_budgets
from tl_experiments.analysis.pairing import PrimaryTest, estimate_of, primary_test
from tl_experiments.analysis.pareto import not_dominated
from tl_experiments.analysis.results import Row
from tl_experiments.analysis.statistics import Estimate, holm
from tl_experiments.analysis.verdict import SIGNIFICANCE, Decision
from tl_experiments.records import RunRecord


def rows_of(group: Sequence[ArmRuns], decision: Decision, settings: Mapping[Arm, Mapping[str, str]]) -> list[Row]:
    """The rows of one dataset.

    Args:
        group: Its arms, in order.
        decision: The verdict on it.
        settings: Arm -> the chosen trial's settings that are shown.
    """
    p_values = {contrast.other: contrast.p_value for contrast in decision.contrasts}
    unequal, front = unequal_budgets(group), _fronts(group)
    gains = {runs.arm: found for runs in group if (found := _transfer_gain(runs, group)) is not None}
    gain_p, negative = _corrected(gains), _negative_transfer(gains, group, decision)
    return [
        _row(
            runs,
            gain=gains.get(runs.arm),
            gain_p=gain_p.get(runs.arm),
            negative=runs.arm in negative,
            recommended=runs.arm == decision.recommended,
            settings=settings[runs.arm],
            p_value=p_values.get(runs.arm),
            unequal=unequal[runs.arm],
            not_dominated=front[runs.arm],
        )
        for runs in group
    ]


def _row(
    runs: ArmRuns,
    *,
    gain: PrimaryTest | None,
    gain_p: float | None,
    negative: bool,
    recommended: bool,
    settings: Mapping[str, str],
    p_value: float | None,
    unequal: tuple[str, ...],
    not_dominated: tuple[str, ...],
) -> Row:
    first = runs.runs[0]
    everything = [run for trial in runs.trials.values() for run in trial]
    return Row(
        arm=runs.arm,
        is_control=runs.is_control,
        recommended=recommended,
        trials=runs.n_trials,
        runs=len(everything),
        settings=settings,
        seeds=runs.seeds,
        splits=len(runs.splits),
        max_epochs=int(first.config["trainer"]["max_epochs"]),
        all_trials_epochs=sum(int(run.config["trainer"]["max_epochs"]) for run in everything),
        val_accuracy=runs.mean("val", "accuracy"),
        test_accuracy=estimate_of(runs),
        test_macro_f1=runs.mean("test", "macro_f1"),
        test_nll=runs.mean("test", "nll"),
        metrics=_metrics(runs),
        trained_parameters=first.trained_parameters,
        total_parameters=first.total_parameters,
        wall_clock_s=_seconds(runs),
        all_trials_s=math.fsum([*(run.wall_clock_s for run in everything), *(one.lost_s for one in runs.searches)]),
        pretraining_s=_pretraining_s(everything),
        peak_memory_bytes=_memory(runs),
        labels_spent=max(int(run.data["labels_spent"]) for run in runs.runs),
        transfer_gain=None if gain is None or gain.test is None else gain.test.difference,
        transfer_gain_p=gain_p,
        p_value=p_value,
        negative_transfer=negative,
        not_dominated=not_dominated,
        unequal=unequal,
    )


def _metrics(runs: ArmRuns) -> dict[str, dict[str, Estimate]]:
    """Of the splits and metrics that every run has: records of old have fewer."""
    first, *others = [run.metrics for run in runs.runs]
    return {
        split: {
            name: estimate_of(runs, split, name)
            for name in sorted(metrics)
            if all(name in other.get(split, {}) for other in others)
        }
        for split, metrics in first.items()
    }


def _fronts(group: Sequence[ArmRuns]) -> dict[Arm, tuple[str, ...]]:
    costs: dict[str, list[float]] = {
        "seconds": [_seconds(arm) for arm in group],
        "trained": [arm.runs[0].trained_parameters for arm in group],
        "memory": [_memory(arm) for arm in group],
    }
    fronts = not_dominated([arm.mean("test", "accuracy") for arm in group], costs)
    return {arm.arm: front for arm, front in zip(group, fronts, strict=True)}


def _seconds(runs: ArmRuns) -> float:
    return fmean(run.wall_clock_s for run in runs.runs)


def _memory(runs: ArmRuns) -> int:
    return max(run.peak_memory_bytes for run in runs.runs)


def _transfer_gain(runs: ArmRuns, group: Sequence[ArmRuns]) -> PrimaryTest | None:
    control = control_of(runs, group)
    return None if control is None or runs.is_control else primary_test(runs, control)


def _corrected(gains: Mapping[Arm, PrimaryTest]) -> dict[Arm, float]:
    """Holm over the gains of the dataset; below 3 seeds no difference is called one, in either direction."""
    tested = {
        arm: found.test.p_value
        for arm, found in gains.items()
        if found.test is not None and found.test.p_value is not None and found.seeds >= MIN_SEEDS
    }
    return dict(zip(tested, holm(list(tested.values())), strict=True))


def _negative_transfer(gains: Mapping[Arm, PrimaryTest], group: Sequence[ArmRuns], decision: Decision) -> set[Arm]:
    """Arms that the primary test finds below their control, with the whole interval of the gain."""
    controls = {runs.arm: control.arm for runs in group if (control := control_of(runs, group)) is not None}
    # What the verdict says of the same two arms is not contradicted: its correction is over other comparisons.
    doubted = {
        frozenset((decision.recommended, contrast.other))
        for contrast in decision.contrasts
        if contrast.outcome not in ("better", "worse")
    }
    negative = set()
    for arm, p_value in _corrected(gains).items():
        test = gains[arm].test
        below = test is not None and test.difference.high is not None and test.difference.high < 0
        if below and p_value < SIGNIFICANCE and frozenset((arm, controls[arm])) not in doubted:
            negative.add(arm)
    return negative


def _pretraining_s(runs: Sequence[RunRecord]) -> float:
    """Runs that start from the same weights share their pretraining: it was paid once."""
    by_weights: dict[object, float] = defaultdict(float)
    for run in runs:
        weights = run.weights.get("sha256")
        by_weights[weights] = max(by_weights[weights], run.pretraining_s)
    return math.fsum(by_weights.values())
