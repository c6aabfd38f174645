"""The running tasks of a sweep on a terminal: what they train, how far they are, how long they will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tl_experiments.safe_text import plain
from tl_experiments.sweeps.jobs import Job
from tl_experiments.sweeps.tasks import Task

if TYPE_CHECKING:
    from rich.table import Table

_LINES = 8  # of running tasks; more are counted
_NAME_LIMIT = 60


@dataclass
class _Shown:
    """A running task: the job that reported last, and its steps."""

    task: Task
    started: float
    left: set[str]
    job: Job | None = None
    done: int = 0
    total: int = 0
    job_started: dict[str, tuple[float, int]] = field(default_factory=dict)  # when it was first heard of, at which step


class Board:
    """What the table shows; told the same as a ``Listener``.

    Args:
        n_jobs: To run.
        name: Of a job, for a reader.
        now: Seconds of a clock that only goes forward.
    """

    def __init__(self, n_jobs: int, name: Callable[[Job], str], now: Callable[[], float] = time.monotonic) -> None:
        self._n_jobs, self._name, self._now = n_jobs, name, now
        self._begun = now()
        self._running: dict[str, _Shown] = {}
        self._queued: set[str] = set()
        self._has_queue = False
        self._states: dict[str, int] = {}

    def submitted(self, tasks: Sequence[Task]) -> None:
        self._has_queue = True
        self._queued |= {job.id for task in tasks for job in task.todo}

    def started(self, task: Task) -> None:
        self._queued -= {job.id for job in task.todo}
        self._running[task.id] = _Shown(task, self._now(), {job.id for job in task.todo})

    def progressed(self, job: Job, done: int, total: int) -> None:
        for shown in self._running.values():
            if job.id in shown.left:
                shown.job_started.setdefault(job.id, (self._now(), done))
                shown.job, shown.done, shown.total = job, done, total

    def ended(self, job: Job, state: str) -> None:
        self._queued.discard(job.id)
        self._states[state] = self._states.get(state, 0) + 1
        for shown in list(self._running.values()):
            shown.left.discard(job.id)
            if shown.job is not None and shown.job.id == job.id:
                shown.job = None
            if not shown.left:
                del self._running[shown.task.id]

    def split(self, task: Task) -> None:
        self._running.pop(task.id, None)
        self._queued -= {job.id for job in task.todo}

    def rows(self) -> list[tuple[str, str, str]]:
        """What runs, how far it is, and the time that it will take; one row a task."""
        return [self._row(shown) for shown in list(self._running.values())[:_LINES]]

    def caption(self) -> str:
        """Counts of all jobs."""
        ended = sum(self._states.values())
        running = sum(len(shown.left) for shown in self._running.values())
        counts = [f"{ended} of {self._n_jobs} jobs ended"]
        counts += [f"{count} {state}" for state, count in sorted(self._states.items()) if state != "ok"]
        counts.append(f"{running} running")
        if self._has_queue:
            counts.append(f"{len(self._queued)} in the queue")
        waiting = self._n_jobs - ended - running - len(self._queued)
        if waiting or not self._has_queue:
            counts.append(f"{waiting} waiting")
        counts.append(_clock(self._now() - self._begun))
        if len(self._running) > _LINES:
            counts.insert(0, f"and {len(self._running) - _LINES} more tasks")
        return ", ".join(counts)

    def _row(self, shown: _Shown) -> tuple[str, str, str]:
        # drawn by a thread of its own, which may look while a job ends
        waiting = (job for job in shown.task.todo if job.id in shown.left)
        job = shown.job or next(waiting, shown.task.jobs[0])
        name = plain(self._name(job))
        if len(name) > _NAME_LIMIT:
            name = name[: _NAME_LIMIT - 3] + "..."
        if len(shown.left) > 1:
            name += f" and {len(shown.left) - 1} more"
        if shown.job is None or not shown.total:
            return name, "", _clock(self._now() - shown.started)
        since, first = shown.job_started.get(job.id, (self._now(), shown.done))
        spent, steps = self._now() - since, shown.done - first
        left = f"{_clock(spent * (shown.total - shown.done) / steps)} left" if steps > 0 and spent else ""
        return name, f"step {shown.done} of {shown.total}", left


@contextmanager
def shown(board: Board) -> Iterator[None]:
    """Draw ``board`` on standard error while the body runs, if that is a terminal; log lines pass above it."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    with Live(get_renderable=lambda: _table(board.rows(), board.caption()), console=console, transient=True):
        yield


def _table(rows: Sequence[tuple[str, str, str]], caption: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="ellipsis", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    table.add_row(Text(caption, style="dim"))
    return table


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
