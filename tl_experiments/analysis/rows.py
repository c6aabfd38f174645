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
from tl_experiments.analysis.statistics import Estimate
from tl_experiments.analysis.verdict import Decision
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
    return [
        _row(
            runs,
            gain=_transfer_gain(runs, group),
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
    recommended: bool,
    settings: Mapping[str, str],
    p_value: float | None,
    unequal: tuple[str, ...],
    not_dominated: tuple[str, ...],
) -> Row:
    first = runs.runs[0]
    everything = [run for trial in runs.trials.values() for run in trial]
    difference = None if gain is None or gain.test is None else gain.test.difference
    # Below 3 seeds no difference is called one, in either direction.
    enough = gain is not None and gain.seeds >= MIN_SEEDS
    return Row(
        arm=runs.arm,
        is_control=runs.is_control,
        recommended=recommended,
        trials=len(runs.trials),
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
        all_trials_s=math.fsum(run.wall_clock_s for run in everything),
        pretraining_s=_pretraining_s(everything),
        peak_memory_bytes=_memory(runs),
        labels_spent=max(int(run.data["labels_spent"]) for run in runs.runs),
        transfer_gain=difference,
        p_value=p_value,
        negative_transfer=enough and difference is not None and difference.high is not None and difference.high < 0,
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


def _pretraining_s(runs: Sequence[RunRecord]) -> float:
    """Runs that start from the same weights share their pretraining: it was paid once."""
    by_weights: dict[object, float] = defaultdict(float)
    for run in runs:
        weights = run.weights.get("sha256")
        by_weights[weights] = max(by_weights[weights], run.pretraining_s)
    return math.fsum(by_weights.values())
