"""From records to a comparison: choose on val, pair by (dataset, seed), estimate, test, warn."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any

from tl_experiments.analysis.arms import MIN_SEEDS, Arm, ArmRuns, control_of, differs, group_arms
from tl_experiments.analysis.caveats import CHECKS, lost_warning
from tl_experiments.analysis.results import Comparison, LostJob, Row, Verdict
from tl_experiments.analysis.runs import FinishedRun
from tl_experiments.analysis.sentence import verdict_sentence
from tl_experiments.analysis.settings import chosen_settings
from tl_experiments.analysis.statistics import Estimate, estimate, paired_test
from tl_experiments.analysis.verdict import Decision, decide
from tl_experiments.errors import UserError
from tl_experiments.records import RunRecord


def compare_records(records: Iterable[RunRecord], jobs: Iterable[Mapping[str, Any]] | None = None) -> Comparison:
    """Compare the arms of finished runs.

    Args:
        records: Finished runs, in any order.
        jobs: Entries of ``sweep.json``; those that did not end ``ok`` are listed, and are in no mean.

    Raises:
        UserError: There is no usable run.
    """
    given = sorted(records, key=lambda record: record.job_id)
    sets = [set(job["overrides"]) for job in jobs or ()]
    shared = set.intersection(*sets) if len(sets) > 1 else set[str]()
    bad = {record.job_id: cause for record in given if (cause := _not_finite(record))}
    lost = (
        *(LostJob(job_id=job_id, state="diverged", cause=cause) for job_id, cause in bad.items()),
        *(_lost_job(job, shared) for job in jobs or () if job["state"] != "ok"),
    )
    used = [record for record in given if record.job_id not in bad]
    if not used:
        states = "".join(f"; {warning}" for warning in lost_warning(lost))
        raise UserError(
            "compare", f"0 finished runs, expected 1 or more{states}", "read the jobs' logs, run them again"
        )
    arms = group_arms(used)
    settings = chosen_settings(arms)
    datasets = [list(group) for _, group in groupby(arms, key=lambda runs: runs.arm.dataset)]
    rows: list[Row] = []
    verdicts: list[Verdict] = []
    warnings: list[str] = []
    for group in datasets:
        names = arm_names([runs.arm for runs in group])
        decision = decide(group, _test_accuracy(group[0]))
        of_dataset = [_row(runs, group, decision, settings[runs.arm]) for runs in group]
        negative = {row.arm: row.transfer_gain for row in of_dataset if row.negative_transfer and row.transfer_gain}
        dataset = group[0].arm.dataset
        sentence = verdict_sentence(decision, names, negative, dataset=dataset if len(datasets) > 1 else None)
        rows += of_dataset
        verdicts.append(Verdict(dataset=dataset, recommended=decision.recommended, sentence=sentence))
        warnings += [warning for check in CHECKS for warning in check(group, names)]
    return Comparison(
        rows=tuple(rows),
        verdicts=tuple(verdicts),
        warnings=(*dict.fromkeys(warnings), *lost_warning(lost)),
        notes=_notes(used),
        lost_jobs=lost,
    )


def chosen_runs(runs: Iterable[FinishedRun]) -> dict[Arm, tuple[FinishedRun, ...]]:
    """Arm -> the runs of the trial that val chose, in order of seed, fold and split; without those that diverged."""
    by_job: dict[str, FinishedRun] = {}
    for run in sorted(runs, key=lambda run: run.record.job_id):
        by_job.setdefault(run.record.job_id, run)
    arms = group_arms(run.record for run in by_job.values() if not _not_finite(run.record))
    return {arm.arm: tuple(by_job[record.job_id] for record in arm.runs) for arm in arms}


def arm_names(arms: Sequence[Arm]) -> dict[Arm, str]:
    """Arm -> its strategy, with the backbone and the head where these differ: ``full (resnet10t)``."""
    varying = [key for key in ("backbone", "head") if differs(arms, key)]
    names = {}
    for arm in arms:
        where = ", ".join(getattr(arm, key) for key in varying)
        names[arm] = f"{arm.freeze_strategy} ({where})" if where else arm.freeze_strategy
    return names


def _row(runs: ArmRuns, group: Sequence[ArmRuns], decision: Decision, settings: Mapping[str, str]) -> Row:
    gain = _transfer_gain(runs, group)
    first = runs.runs[0]
    everything = [run for trial in runs.trials.values() for run in trial]
    return Row(
        arm=runs.arm,
        is_control=runs.is_control,
        recommended=runs.arm == decision.recommended,
        trials=len(runs.trials),
        settings=settings,
        seeds=runs.seeds,
        max_epochs=int(first.config["trainer"]["max_epochs"]),
        val_accuracy=runs.mean("val", "accuracy"),
        test_accuracy=_test_accuracy(runs),
        test_macro_f1=runs.mean("test", "macro_f1"),
        test_nll=runs.mean("test", "nll"),
        trained_parameters=first.trained_parameters,
        total_parameters=first.total_parameters,
        wall_clock_s=fmean(run.wall_clock_s for run in runs.runs),
        all_trials_s=math.fsum(run.wall_clock_s for run in everything),
        pretraining_s=_pretraining_s(everything),
        peak_memory_bytes=max(run.peak_memory_bytes for run in runs.runs),
        labels_spent=max(int(run.data["labels_spent"]) for run in runs.runs),
        transfer_gain=gain,
        p_value=next((c.p_value for c in decision.contrasts if c.other == runs.arm), None),
        # Below 3 seeds no difference is called one, in either direction.
        negative_transfer=gain is not None and gain.n >= MIN_SEEDS and gain.high is not None and gain.high < 0,
    )


def _test_accuracy(runs: ArmRuns) -> Estimate:
    return estimate(list(runs.by_pair("test", "accuracy").values()))


def _transfer_gain(runs: ArmRuns, group: Sequence[ArmRuns]) -> Estimate | None:
    control = control_of(runs, group)
    if control is None or runs.is_control:
        return None
    test = paired_test(runs.by_pair("test", "accuracy"), control.by_pair("test", "accuracy"))
    return None if test is None else test.difference


def _pretraining_s(runs: Sequence[RunRecord]) -> float:
    """Runs that start from the same weights share their pretraining: it was paid once."""
    by_weights: dict[object, float] = defaultdict(float)
    for run in runs:
        weights = run.weights.get("sha256")
        by_weights[weights] = max(by_weights[weights], run.pretraining_s)
    return math.fsum(by_weights.values())


def _not_finite(record: RunRecord) -> str | None:
    for split, metrics in sorted(record.metrics.items()):
        for name, value in sorted(metrics.items()):
            if not math.isfinite(value):
                return f"{split} {name} is {value}"
    return None


def _lost_job(job: Mapping[str, Any], shared: set[str]) -> LostJob:
    """The job by the overrides that tell it from the others of its sweep."""
    return LostJob(
        job_id=str(job["id"]),
        state=str(job["state"]),
        cause=str(job["cause"] or ""),
        overrides=tuple(str(override) for override in job["overrides"] if override not in shared),
        log=job["log"],
        seconds=job["seconds"],
    )


def _notes(records: Sequence[RunRecord]) -> tuple[str, ...]:
    """Each note once; most hold for many runs."""
    notes = [note for record in records for note in (*record.data["notes"], *record.notes)]
    return tuple(sorted(dict.fromkeys(notes)))
