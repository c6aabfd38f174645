"""From records to a comparison: choose on val, pair by seed and split, estimate, test, warn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from tl_experiments.analysis.arms import Arm, SearchBudget, differs, group_arms
from tl_experiments.analysis.caveats import CHECKS, lost_warning, search_notes, tuning_notes, unverified_warning
from tl_experiments.analysis.contrasts import contrasts_of
from tl_experiments.analysis.data_caveats import is_leakage, leakage_warning, seen_test_warning
from tl_experiments.analysis.disagreements import disagreement_warnings, ordering_warnings
from tl_experiments.analysis.findings import Contrast
from tl_experiments.analysis.images import Hits
from tl_experiments.analysis.overview import overview_of, repeated_images
from tl_experiments.analysis.pairing import estimate_of
from tl_experiments.analysis.results import Comparison, LostJob, Row, Verdict
from tl_experiments.analysis.rows import rows_of
from tl_experiments.analysis.runs import FinishedRun
from tl_experiments.analysis.sentence import verdict_sentence
from tl_experiments.analysis.settings import chosen_settings
from tl_experiments.analysis.verdict import decide
from tl_experiments.errors import UserError
from tl_experiments.records import RunRecord


def compare_records(
    records: Iterable[RunRecord],
    jobs: Iterable[Mapping[str, Any]] | None = None,
    *,
    hits: Mapping[str, Hits] | None = None,
    unverified: Sequence[str] = (),
    searches: Sequence[SearchBudget] = (),
) -> Comparison:
    """Compare the arms of finished runs.

    Args:
        records: Finished runs, in any order.
        jobs: Entries of ``sweep.json``; those that did not end ``ok`` are listed, and are in no mean.
        hits: Job -> the test images that it had right, for the tests over images.
        unverified: Jobs whose numbers could not be computed again.
        searches: What ``tl tune`` spent.

    Raises:
        UserError: There is no usable run.
    """
    given = sorted(records, key=lambda record: record.job_id)
    sets = [set(job["overrides"]) for job in jobs or ()]
    shared = set.intersection(*sets) if len(sets) > 1 else set[str]()
    bad = {record.job_id: cause for record in given if (cause := not_finite(record))}
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
    arms = group_arms(used, searches)
    datasets = [list(group) for _, group in groupby(arms, key=lambda runs: runs.arm.dataset)]
    rows: list[Row] = []
    contrasts: list[Contrast] = []
    verdicts: list[Verdict] = []
    warnings: list[str] = []
    notes = tuning_notes(arms)
    for group in datasets:
        names = arm_names([runs.arm for runs in group])
        decision = decide(group, estimate_of(group[0]))
        of_dataset = rows_of(group, decision, chosen_settings(group))
        negative = {row.arm: row.transfer_gain for row in of_dataset if row.negative_transfer and row.transfer_gain}
        dataset = group[0].arm.dataset
        sentence = verdict_sentence(decision, names, negative, dataset=dataset if len(datasets) > 1 else None)
        tested = contrasts_of(group, decision, hits or {})
        rows += of_dataset
        contrasts += tested
        verdicts.append(Verdict(dataset=dataset, recommended=decision.recommended, sentence=sentence))
        found = [*leakage_warning(group), *seen_test_warning(group, hits or {})]
        found += [warning for check in (*CHECKS, ordering_warnings) for warning in check(group, names)]
        where = f"{dataset}: " if len(datasets) > 1 else ""
        notes += [f"{where}{note}" for note in search_notes(group, names)]
        warnings += [f"{where}{warning}" for warning in (*found, *disagreement_warnings(tested, names))]
    overview = overview_of(arms)
    warnings += repeated_images(arms) if overview is not None else []
    return Comparison(
        rows=tuple(rows),
        verdicts=tuple(verdicts),
        warnings=(*dict.fromkeys(warnings), *lost_warning(lost), *unverified_warning(unverified)),
        notes=(*notes, *_notes(used)),
        lost_jobs=lost,
        contrasts=tuple(contrasts),
        overview=overview,
        unverified=tuple(unverified),
    )


def chosen_runs(runs: Iterable[FinishedRun]) -> dict[Arm, tuple[FinishedRun, ...]]:
    """Arm -> the runs of the trial that val chose, in order of seed, fold and split; without those that diverged."""
    by_job: dict[str, FinishedRun] = {}
    for run in sorted(runs, key=lambda run: run.record.job_id):
        by_job.setdefault(run.record.job_id, run)
    arms = group_arms(run.record for run in by_job.values() if not not_finite(run.record))
    return {arm.arm: tuple(by_job[record.job_id] for record in arm.runs) for arm in arms}


def arm_names(arms: Sequence[Arm]) -> dict[Arm, str]:
    """Arm -> its strategy, with the backbone and the head where these differ: ``full (resnet10t)``."""
    varying = [key for key in ("backbone", "head") if differs(arms, key)]
    names = {}
    for arm in arms:
        where = ", ".join(getattr(arm, key) for key in varying)
        names[arm] = f"{arm.freeze_strategy} ({where})" if where else arm.freeze_strategy
    return names


def not_finite(record: RunRecord) -> str | None:
    """Which metric of a run is not a finite number; such a run diverged, and is in no mean."""
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
    """Each note once; most hold for many runs. Leakage is among the warnings."""
    notes = [note for record in records for note in (*record.data["notes"], *record.notes)]
    return tuple(sorted({note for note in notes if not is_leakage(note)}))
