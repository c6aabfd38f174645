"""What becomes of the jobs of a command, entered in the ledger, the log and the book of prices as it happens."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tl_experiments.records import RECORD_FILE, RunRecord
from tl_experiments.sweeps.costs import CostBook
from tl_experiments.sweeps.display import Board
from tl_experiments.sweeps.jobs import Job
from tl_experiments.sweeps.ledger import Ledger, Submitted
from tl_experiments.sweeps.planner import Plan, learn
from tl_experiments.sweeps.tasks import Task
from tl_experiments.training.identity import arm

logger = logging.getLogger(__name__)

_LEDGER_S = 0.25  # least seconds between two times that a job's good end is written


class Bookkeeper:
    """Enters in the ledger, and logs, what becomes of the jobs of a command."""

    def __init__(self, ledger: Ledger, plan: Plan, book: CostBook, common: frozenset[str]) -> None:
        self._ledger, self._book, self._common = ledger, book, common
        self._costs = {task.id: cost for task, cost in zip(plan.tasks, plan.costs, strict=True)}
        self._n_jobs = sum(len(task.todo) for task in plan.tasks)
        self._count = 0
        self._written = 0.0
        self.board = Board(self._n_jobs, self._name)

    def submitting(self, tasks: Sequence[Task], cluster: str, outlives: bool, token: str) -> None:
        for task in tasks:
            jobs = [job.id for job in task.todo]
            self._ledger.tasks[task.id] = Submitted(task.id, jobs, cluster, outlives, "", task.log, time.time(), token)
            for job_id in jobs:
                entry = self._ledger.jobs[job_id]
                entry.state, entry.cause, entry.log = "submitted", None, task.log
        self._write()

    def submitted(self, tasks: Sequence[Task], handles: Sequence[str]) -> None:
        entered = [self._ledger.tasks[task.id] for task in tasks]
        for one, handle in zip(entered, handles, strict=True):
            one.handle = handle
        self._write()
        self.board.submitted(tasks)
        fate = "leaves them there" if entered[0].outlives else "ends them"
        if len(tasks) == 1:
            fate = fate.replace("them", "it")
        logger.info(
            "submitted %s to %s as %s; Ctrl-C %s, tl status %s shows how they stand",
            "a task" if len(tasks) == 1 else f"{len(tasks)} tasks", entered[0].cluster, from_to(handles), fate,
            self._ledger.folder,
        )  # fmt: skip

    def follows(self, tasks: Sequence[Task], handles: Sequence[str]) -> None:
        """An earlier command submitted these."""
        first = self._ledger.tasks[tasks[0].id]
        self.board.submitted(tasks)
        logger.info(
            "following %s on %s as %s, submitted %s",
            "a task" if len(tasks) == 1 else f"{len(tasks)} tasks", first.cluster, from_to(handles),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(first.since)),
        )  # fmt: skip

    def refused(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            del self._ledger.tasks[task.id]
            for job in task.todo:
                self._ledger.jobs[job.id].state = "pending"
        self._write()

    def started(self, task: Task) -> None:
        self.board.started(task)
        for job in task.todo:
            entry = self._ledger.jobs[job.id]
            entry.state, entry.cause, entry.log = "running", None, task.log
        self._write()

    def progressed(self, job: Job, done: int, total: int) -> None:
        self.board.progressed(job, done, total)

    def ended(self, job: Job, state: str, cause: str | None, seconds: float) -> None:
        self.board.ended(job, state)
        entry = self._ledger.jobs[job.id]
        entry.state, entry.cause, entry.seconds = state, cause, round(seconds, 2)  # type: ignore[assignment]
        if state != "ok" or time.perf_counter() - self._written > _LEDGER_S:  # a record says so too
            self._write()
        self._count += 1
        tail = f"  {cause}" if cause else ""
        logger.info(
            "[%*d/%d] %-8s %6.1f s  %s%s",
            len(str(self._n_jobs)), self._count, self._n_jobs, state, seconds, self._name(job), tail,
        )  # fmt: skip

    def _write(self) -> None:
        self._ledger.forget_ended()
        self._ledger.write()
        self._written = time.perf_counter()

    def _name(self, job: Job) -> str:
        told = " ".join(override for override in job.overrides if override not in self._common)
        return told or f"{arm(job.config)['freeze_strategy']} seed={job.config.seed}"

    def finished(self, task: Task, seconds: float) -> None:
        self._ledger.tasks.pop(task.id, None)
        self._write()
        records = finished_records(task.todo, self._ledger.folder)
        if task.id in self._costs and len(records) == len(task.jobs):
            learn(self._book, task, self._costs[task.id], records, seconds)

    def split(self, task: Task, parts: Sequence[Task], cause: str) -> None:
        self.board.split(task)
        left = [job for part in parts for job in part.jobs]
        for job in left:
            self._ledger.jobs[job.id].state = "pending"
        self._ledger.tasks.pop(task.id, None)
        self._ledger.regroup([[job.id for job in part.jobs] for part in parts])
        self._write()
        logger.info(
            "%d jobs that were trained together died (%s), see %s: %d of them again, in %d tasks",
            len(task.jobs), cause, task.log, len(left), len(parts),
        )  # fmt: skip


def from_to(handles: Sequence[str]) -> str:
    """A cluster's names of tasks, the first and the last of several."""
    return handles[0] if len(handles) == 1 else f"{handles[0]} ... {handles[-1]}"


def has_record(folder: Path, job: Job) -> bool:
    """Whether the job is done."""
    return (folder / job.id / RECORD_FILE).is_file()


def finished_records(jobs: Iterable[Job], folder: Path) -> list[RunRecord]:
    """Records of the jobs that are done."""
    return [RunRecord.read(folder / job.id) for job in jobs if has_record(folder, job)]
