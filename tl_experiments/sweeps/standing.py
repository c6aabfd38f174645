"""How the jobs of a task on a cluster stand: by their records, by its journal, and by what the cluster says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_experiments.cache.locks import holder
from tl_experiments.records import RECORD_FILE
from tl_experiments.sweeps.journal import JournalReader, journal_path, lock_path
from tl_experiments.sweeps.ledger import AT_WORK, Ledger, State, Submitted

if TYPE_CHECKING:
    from tl_experiments.sweeps.cluster import Condition

SHOWS_WITHIN_S = 90.0  # that another machine's new file may take to show on a shared disk
DIED = "ended before it was done"  # where nobody knows why
NO_RECORD = "it ended well, but its record.json does not show here; run it again"
CANCELLED = "cancelled; run it again"
WITH_THE_COMMAND = "the command ended before the job did; run it again"


@dataclass(frozen=True)
class Standing:
    """A job, as far as can be known without the command that submitted it.

    Args:
        state: Of the ledger.
        detail: In a few words: why it waits, where it runs, or the cause as the ledger has it.
        seconds: That it took; None where it has not ended, or its end is not told.
        done: Steps of its training.
        total: Of so many.
        left_s: Seconds until the last step, at its pace.
    """

    state: State
    detail: str = ""
    seconds: float | None = None
    done: int | None = None
    total: int | None = None
    left_s: float | None = None


@dataclass
class _Told:
    """What a journal says by now."""

    host: str | None = None
    began: bool = False
    ends: dict[str, tuple[State, str | None, float]] = field(default_factory=dict)
    progress: dict[str, list[tuple[float, int, int]]] = field(default_factory=dict)  # time, steps, of so many
    last_word: tuple[State, str, bool] | None = None
    over: bool = False

    def take(self, line: Mapping[str, Any]) -> None:
        match line:
            case {"event": "began"}:
                self.host, self.last_word, self.over, self.progress = str(line.get("host", "")), None, False, {}
                self.began = True
            case {"event": "ended", "job": job, "state": state, "cause": cause, "seconds": seconds}:
                self.ends[job] = state, cause, seconds
            case {"event": "progress", "job": job, "done": done, "total": total, "time": time}:
                self.progress[job] = [*self.progress.get(job, [])[:1], (time, done, total)]
            case {"event": "left", "state": state, "cause": cause, "final": final}:
                self.last_word = state, cause, final
            case {"event": "over"}:
                self.over = True


@dataclass(frozen=True)
class TaskStanding:
    """A task that the ledger says a cluster has.

    Args:
        jobs: Job id -> how it stands.
        gone: Whether nothing more is to be expected of it; what its jobs' states are then is their end.
        unseen: Whether it may have left a file that does not show here yet.
    """

    jobs: Mapping[str, Standing]
    gone: bool
    unseen: bool = False


def standing(folder: Path, task: Submitted, condition: Condition | None, *, followed: bool) -> TaskStanding:
    """How a task stands.

    Args:
        folder: Of the sweep.
        task: As the ledger has it.
        condition: What its cluster says; None where it cannot be asked.
        followed: Whether a command that follows it runs.
    """
    told = _Told()
    for line in JournalReader(journal_path(folder, task.id)).news():
        told.take(line)
    over = told.over or (condition is not None and condition.state == "ended")
    over = over or not (task.outlives or followed)
    computes = (told.over is False) and holder(lock_path(folder, task.id)) is not None
    gone = over and not computes  # a node that the cluster lost may go on computing
    if gone:
        jobs = {job: _end(folder, task, job, told, condition) for job in task.jobs}
    else:
        jobs = {job: _at_work(folder, task, job, told, condition, computes) for job in task.jobs}
    silent = not told.began and condition is not None and not condition.outside
    unseen = silent or any(one.detail == NO_RECORD for one in jobs.values())
    return TaskStanding(jobs, gone or all(one.state not in AT_WORK for one in jobs.values()), unseen)


def without_a_beginning(condition: Condition | None) -> str:
    """Why the jobs of a task ended of whose process nothing is to be read: none of them is to blame for that.

    Args:
        condition: What its cluster says.
    """
    death = (condition.detail if condition else "") or DIED
    log = f"; see {condition.log}" if condition and condition.log else ""
    return f"its process did not begin: {death}{log}; run it again"


def enter(ledger: Ledger, task: Submitted, found: TaskStanding) -> None:
    """Enter how the jobs of a task that is gone ended, and forget it."""
    for job_id, one in found.jobs.items():
        entry = ledger.jobs[job_id]
        if entry.state != "ok":
            entry.state, entry.cause, entry.seconds = one.state, one.detail or None, one.seconds
    del ledger.tasks[task.id]


def enter_cancelled(ledger: Ledger, task: Submitted) -> None:
    """Enter how the jobs of a task stand that was told to end, and forget it."""
    found = standing(ledger.folder, task, None, followed=False).jobs
    for job in task.jobs:
        entry = ledger.jobs[job]
        if found[job].state not in AT_WORK:
            entry.state, entry.cause, entry.seconds = found[job].state, found[job].detail or None, found[job].seconds
        elif entry.state in AT_WORK:
            entry.state, entry.cause = "interrupted", CANCELLED
    del ledger.tasks[task.id]


def _said(folder: Path, job: str, told: _Told) -> Standing | None:
    """The end of a job that has one, whatever becomes of its task."""
    state, cause, seconds = told.ends.get(job, (None, None, None))
    if (folder / job / RECORD_FILE).is_file():
        return Standing("ok", seconds=seconds)
    if state is None or state == "ok":
        return None
    return Standing(state, cause or "", seconds)


def _end(folder: Path, task: Submitted, job: str, told: _Told, condition: Condition | None) -> Standing:
    """As the command would have entered it; what it would have tried again in smaller tasks waits for the next."""
    if (said := _said(folder, job, told)) is not None:
        return said
    if job in told.ends:
        return Standing("interrupted", NO_RECORD)
    if told.last_word is None and not task.outlives:
        return Standing("interrupted", WITH_THE_COMMAND)
    if not told.began and not (condition is not None and condition.outside):
        return Standing("interrupted", without_a_beginning(condition))
    state, cause, final = told.last_word or ("failed", (condition.detail if condition else "") or DIED, False)
    outside = told.last_word is None and condition is not None and condition.outside
    if outside or (not final and task.id != job):  # of several
        return Standing("interrupted", f"{cause}; run it again")
    return Standing(state, cause)


def _at_work(
    folder: Path, task: Submitted, job: str, told: _Told, condition: Condition | None, computes: bool
) -> Standing:
    if (said := _said(folder, job, told)) is not None:
        return said
    if job in told.ends:
        return Standing("running", "its record does not show here yet")
    steps = _steps(told.progress.get(job, ()))
    detail = condition.detail if condition else ""
    waits = condition is not None and condition.state == "waiting"  # its process may be writing its resume point
    if (computes and not waits) or (condition is not None and condition.state == "running"):
        return replace(steps, detail=told.host or detail)
    if told.host is None:
        unsure = f"whether {task.cluster} has it is not known: the command that submitted it saw no answer"
        return Standing("submitted", detail if task.handle or condition is not None else unsure)
    if condition is not None:
        return replace(steps, state="submitted", detail=", ".join(filter(None, (detail, "goes on in its next turn"))))
    return replace(steps, detail=f"{told.host}, but its process shows no sign of life")


def _steps(seen: Any) -> Standing:
    if not seen:
        return Standing("running")
    (first_time, first, _), (time, done, total) = seen[0], seen[-1]
    left = (time - first_time) * (total - done) / (done - first) if done > first else None
    return Standing("running", done=done, total=total, left_s=left)
