"""Enters finished runs of a sweep in one tracker, from their records, once and on request."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tl_experiments.tracking.entries import run_name
from tl_experiments.tracking.follow import Tracker, reason
from tl_experiments.tracking.runs import Reader, Run

Outcome = Literal["new", "completed", "already there", "written offline", "failed", "left out", "not chosen"]
_NOTHING_TO_ENTER = ("left out", "not chosen")
_AT_ONCE = 8  # runs under way; a tracker may wait for a server
_FAILURES = 3  # and nothing but failures: the server is gone, and the others are not tried


@dataclass(frozen=True)
class Pushed:
    """What became of one run.

    Args:
        run: Its job id.
        name: For people; empty where training never began.
        outcome: ``left out`` is a run that is not finished, or never began; ``not chosen`` a job that was not run
            because val chose another setting with the tuning seed.
        why: Of a failure.
    """

    run: str
    name: str
    outcome: Outcome
    why: str = ""


def push(folder: Path, tracker: Tracker, only: Collection[str] | None, force: bool) -> Iterator[Pushed]:
    """Enter what is missing of the runs that have ended.

    Args:
        folder: Of the sweep.
        tracker: Where to enter.
        only: Job ids; None is all.
        force: Enter runs again that are there.
    """
    if tracker.whole:
        for run in Reader(folder).changed(over=False):
            tracker.update(run)
    runs = [run for run in Reader(folder).changed(over=False) if only is None or run.id in only]
    gone = False
    at_once = max(1, len(runs)) if tracker.whole else _AT_ONCE  # one run's tables are those of all
    for start in range(0, len(runs), at_once):
        batch = runs[start : start + at_once]
        if gone:
            yield from (_pushed(run, "failed", "not tried after the failures above") for run in batch)
            continue
        results = _enter(batch, tracker, force)
        yield from results
        tried = [one.outcome for one in results if one.outcome not in ("already there", *_NOTHING_TO_ENTER)]
        gone = len(tried) >= _FAILURES and set(tried) == {"failed"}


def _enter(runs: Sequence[Run], tracker: Tracker, force: bool) -> list[Pushed]:
    """Begin with all, wait for all, and look what arrived."""
    begun = [_begin(run, tracker, force) for run in runs]
    why = "it did not arrive"
    try:
        tracker.flush()
        tracker.close()
    except Exception as error:
        why = reason(error)
    found = []
    for run, one in zip(runs, begun, strict=True):
        if one.outcome in ("new", "completed"):
            there = tracker.holds(run)
            if not there.completes(run):
                one = _pushed(run, "failed", why)
            elif there.offline:
                one = _pushed(run, "written offline")
        found.append(one)
    return found


def _begin(run: Run, tracker: Tracker, force: bool) -> Pushed:
    """What will have become of a run, if it arrives."""
    if not run.ended or not run.facts:
        return _pushed(run, "not chosen" if run.state == "unchosen" else "left out")
    try:
        there = tracker.holds(run)
        if there.completes(run) and not force:
            return _pushed(run, "written offline" if there.offline else "already there")
        if force or not there.known:
            tracker.forget(run)
        tracker.update(run)
    except Exception as error:
        return _pushed(run, "failed", reason(error))
    return _pushed(run, "completed" if there.known and not force else "new")


def _pushed(run: Run, outcome: Outcome, why: str = "") -> Pushed:
    return Pushed(run.id, run_name(run) if run.facts else "", outcome, why)
