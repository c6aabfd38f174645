"""Ending what runs of a sweep, from another process than the command that runs it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tl_experiments.cache.locks import Holder, is_on_this_host
from tl_experiments.errors import TrainingError, UserError
from tl_experiments.records import RECORD_FILE
from tl_experiments.sweeps.ledger import Ledger, Submitted
from tl_experiments.sweeps.lock import (
    answer_cancel,
    ask_to_cancel,
    by_whom,
    is_asked_to_cancel,
    running_here,
    runs_here,
)
from tl_experiments.sweeps.standing import enter_cancelled
from tl_experiments.sweeps.survey import fitting, open_sweep

# That a command may take to look whether it was asked and to do it: a slow cluster takes a minute for each of three
# questions, and its tasks half a minute for their resume points
_ANSWER_S = 240.0
_ENDS_S = 60.0  # that a command of this machine may take for its resume points
_LOOK_S = 0.2


def cancel(folder: Path, which: Sequence[str], *, forget: bool) -> str:
    """End what runs of a sweep, here or on a cluster; its jobs go on from their resume points when they run again.

    Args:
        folder: Of the sweep.
        which: Jobs, as ``survey.fitting`` takes them; none is all. A task ends as a whole.
        forget: Take tasks for ended whose cluster cannot be asked.

    Returns:
        What was done, in a line.

    Raises:
        UserError: No job fits, or what runs cannot be reached from here.
    """
    ledger = open_sweep(folder)
    chosen = _chosen(ledger, which)
    by = runs_here(folder)
    if by is not None and ledger.tasks:
        concerned = [task for task in ledger.tasks.values() if chosen is None or not chosen.isdisjoint(task.jobs)]
        if not concerned:
            return f"none of these jobs runs: {folder}"
        left = _unfinished(folder, concerned)
        if _asked(folder, by, chosen):
            return f"cancelled {_counted(left)}; {_again(folder)}"
    elif by is not None:
        if chosen is not None:
            fix = "tl cancel without --jobs ends the command; the same command goes on with what is not done"
            raise UserError("--jobs", "this sweep runs as processes of one command, which end together", fix)
        _end(folder, by)
        if not Ledger.open(folder).tasks:  # it had not submitted anything yet
            return f"ended process {by.pid}; {_again(folder)}"
    return _cancel_tasks(folder, which, forget)


def _asked(folder: Path, by: Holder, chosen: frozenset[str] | None) -> bool:
    """Let the command that follows the tasks end them; False where it ended before it could."""
    ask_to_cancel(folder, by, chosen)
    try:
        if not _wait(lambda: not is_asked_to_cancel(folder) or runs_here(folder) != by, _ANSWER_S):
            fix = "end that process, its tasks go on without it; then tl cancel again"
            raise TrainingError(str(folder), f"{by_whom(by)} does not answer", fix)
        return not is_asked_to_cancel(folder)
    finally:
        answer_cancel(folder)


def _end(folder: Path, by: Holder) -> None:
    """Ask a command on this machine to end, as Ctrl-C does."""
    if not is_on_this_host(by):
        fix = f"tl cancel {folder} on {by.host.split()[0]}, or Ctrl-C where it was started"
        raise UserError(str(folder), f"is run by {by_whom(by)}, not on this machine", fix)
    with suppress(ProcessLookupError):
        os.kill(by.pid, signal.SIGTERM)
    if not _wait(lambda: runs_here(folder) != by, _ENDS_S):
        raise TrainingError(str(folder), f"{by_whom(by)} was asked to end and has not", f"kill {by.pid}")


def _cancel_tasks(folder: Path, which: Sequence[str], forget: bool) -> str:
    """Without a command that follows them."""
    with running_here(folder):
        ledger = open_sweep(folder)
        chosen = _chosen(ledger, which)
        tasks = [task for task in ledger.tasks.values() if chosen is None or not chosen.isdisjoint(task.jobs)]
        if not tasks:
            return f"nothing runs: {folder}" if chosen is None else f"none of these jobs runs: {folder}"
        left = _unfinished(folder, tasks)
        failures = _cancel_at_clusters(ledger, tasks, forget)
        ledger.write()
    if failures:
        raise failures[0]
    return f"cancelled {_counted(left)}; {_again(folder)}" if left else f"nothing runs: {folder}"


def _cancel_at_clusters(ledger: Ledger, tasks: Sequence[Submitted], forget: bool) -> list[UserError]:
    """End the tasks and enter how their jobs stand; returns what kept it from doing so."""
    from tl_experiments.sweeps.claims import end  # takes as long as all the rest
    from tl_experiments.sweeps.executors import cluster_of

    failures: list[UserError] = []
    for name in dict.fromkeys(task.cluster for task in tasks):
        there = [task for task in tasks if task.cluster == name]
        outliving = [task for task in there if task.outlives]
        try:
            if outliving and not forget:
                end(outliving, ledger.folder, cluster_of(name))
        except UserError as error:
            fix = f"tl cancel where {name} can be reached, or tl cancel --forget if its tasks are gone for good"
            what = f"{_counted(there)} on {error.thing}: {error.what}"
            failures.append(TrainingError(str(ledger.folder), what, fix))
            continue
        for task in there:
            enter_cancelled(ledger, task)
    return failures


def _chosen(ledger: Ledger, which: Sequence[str]) -> frozenset[str] | None:
    """Ids of the jobs that are meant; None for all."""
    found: set[str] = set()
    for text in which:
        fit = fitting(ledger.jobs.values(), text)
        if not fit:
            raise UserError(text, f"no job of {ledger.folder} fits", f"tl status {ledger.folder} --all shows them")
        found |= {entry.id for entry in fit}
    return frozenset(found) if which else None


def _unfinished(folder: Path, tasks: Sequence[Submitted]) -> list[Submitted]:
    """The tasks with the jobs that have no record yet; those that have none of these are left out."""
    left = [
        replace(task, jobs=[job for job in task.jobs if not (folder / job / RECORD_FILE).is_file()]) for task in tasks
    ]
    return [task for task in left if task.jobs]


def _counted(tasks: Sequence[Submitted]) -> str:
    jobs = sum(len(task.jobs) for task in tasks)
    counted = "1 task" if len(tasks) == 1 else f"{len(tasks)} tasks"
    return f"{counted} of {jobs} {'job' if jobs == 1 else 'jobs'}"


def _again(folder: Path) -> str:
    return f"the same command runs them again, from their resume points: {folder}"


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(_LOOK_S)
    return True
