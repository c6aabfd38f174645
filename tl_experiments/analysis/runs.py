"""A finished run with what else it left on the disk, read when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tl_experiments.analysis.folders import Found
from tl_experiments.errors import UserError
from tl_experiments.metrics.stored import Predictions, read_curve, read_predictions
from tl_experiments.records import METRICS_FILE, RunRecord


@dataclass(frozen=True)
class FinishedRun:
    """One run that is in the comparison.

    Args:
        record: Its record.
        folder: Where its files are.
        overrides: What the command line said for it; empty where no ``sweep.json`` tells.
    """

    record: RunRecord
    folder: Path
    overrides: tuple[str, ...] = ()

    @cached_property
    def predictions(self) -> Mapping[str, Predictions]:
        """Split (``val``, ``test``, ``test/<name>``) -> what it predicted.

        Raises:
            UserError: The file is missing or damaged.
        """
        return read_predictions(self.folder)

    @cached_property
    def curve(self) -> tuple[Mapping[str, Any], ...]:
        """Its validations in order of steps: ``step``, ``epoch``, ``seconds``, ``train_loss``, ``val_accuracy``, ..."""
        return read_curve(self.folder / METRICS_FILE)


def load(found: Found) -> tuple[list[FinishedRun], list[Mapping[str, Any]]]:
    """Read the records; a damaged one becomes an ``unreadable`` job, so that it costs only itself.

    A job that ended in several folders is listed once, and not at all among the lost if one of them has its record.
    """
    runs, unreadable = [], {}
    jobs = {str(job["id"]): job for job in found.jobs if job["state"] not in ("ok", "unchosen", "pruned")}
    listed = {str(job["id"]): job for job in found.jobs}
    empty: Mapping[str, Any] = {"overrides": [], "log": None, "seconds": None}
    for folder in found.records:
        try:
            overrides = listed.get(folder.name, empty)["overrides"]
            runs.append(FinishedRun(RunRecord.read(folder), folder, tuple(map(str, overrides))))
        except UserError as error:
            unreadable[folder.name] = str(error)
    for name, cause in unreadable.items():
        jobs[name] = {**empty, **listed.get(name, {}), "id": name, "state": "unreadable", "cause": cause}
    for run in [run for run in runs if run.record.is_debug_run]:
        runs.remove(run)
        name, cause = run.record.job_id, "a debug run, whose numbers are no result"
        jobs[name] = {**empty, **listed.get(name, {}), "id": name, "state": "debug", "cause": cause}
    done = {run.record.job_id for run in runs}
    return runs, [job for name, job in jobs.items() if name not in done]
