"""One command's jobs: planned, entered in the ledger, run where they are not done yet."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tl_experiments.config.schema import TrainConfig
from tl_experiments.errors import StorageError, UserError
from tl_experiments.interrupt import Interrupted
from tl_experiments.records import RECORD_FILE, STACKS_FOLDER, RunRecord, remove_resume_points, remove_stale_temporaries
from tl_experiments.sweeps.costs import CostBook
from tl_experiments.sweeps.display import Board, shown
from tl_experiments.sweeps.jobs import Job
from tl_experiments.sweeps.ledger import ENDED_BADLY, Entry, Ledger
from tl_experiments.sweeps.local import Slots, run_tasks, slots
from tl_experiments.sweeps.planner import (
    Plan,
    comparison,
    costs_file,
    learn,
    make_plan,
    table,
    undecoded,
    unpriced,
)
from tl_experiments.sweeps.pricing import complete
from tl_experiments.sweeps.tasks import LOG_FILE, Task, make_tasks
from tl_experiments.sweeps.worker import run_job
from tl_experiments.training.preflight import Datasets, check_data, check_unchanged

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a command leaves.

    Args:
        folder: Of the sweep.
        trained: Jobs that ran now.
        skipped: Jobs that were done before.
        ok: Jobs of this command that have a record.
        bad: Jobs of this command that did not end well, now or before.
        common: Overrides that all jobs of this command share.
    """

    folder: Path
    trained: int
    skipped: int
    ok: int
    bad: tuple[Entry, ...]
    common: frozenset[str]


def run_sweep(jobs: Sequence[Job], folder: Path, command: str) -> Outcome:
    """Run the jobs that are not done, each in a process of its own, and enter how each ended in ``sweep.json``.

    Raises:
        DataError: Before any job starts, if a dataset cannot be used as it stands.
    """
    datasets = _check_data(jobs, folder)
    with _ledger(jobs, folder, command) as ledger:
        todo = _not_done(jobs, ledger)
        if todo:
            tasks = _tasks(jobs, todo, ledger)
            where = _slots(tasks, ledger)
            logger.info("sweep %s: %s, %s", folder, _counts(jobs, todo, tasks), _describe(where))
            book = _book(todo[0].config, where)
            plan = make_plan(tasks, datasets, book, len(where.devices))
            _log(table(plan))
            started = time.perf_counter()
            keeper = _Bookkeeper(ledger, plan, book, _common(jobs))
            with shown(keeper.board):
                run_tasks(tasks, folder, where, keeper)
            book.write()
            _log(comparison(plan, _records(todo, folder), time.perf_counter() - started))
        return _outcome(jobs, todo, ledger)


def preview(jobs: Sequence[Job], folder: Path) -> str:
    """What ``run_sweep`` would run, and what that would cost; prices that are not known are measured.

    Raises:
        DataError: If a dataset cannot be used as it stands.
    """
    datasets = _check_data(jobs, folder)
    ledger = Ledger.open(folder)
    ledger.add("", [(job.id, job.overrides) for job in jobs])
    todo = _not_done(jobs, ledger)
    if not todo:
        return f"nothing to run: {len(jobs)} of {len(jobs)} jobs have ended in {folder}"
    tasks = _tasks(jobs, todo, ledger)
    where = _slots(tasks, ledger)
    book = _book(todo[0].config, where)
    complete(book, unpriced(tasks, book), undecoded(tasks, book), where)
    plan = make_plan(tasks, datasets, book, len(where.devices))
    return f"{folder}: {_counts(jobs, todo, tasks)}, {_describe(where)}\n{table(plan)}"


def run_single(job: Job, folder: Path, command: str) -> Outcome:
    """Run one job in this process, with its output on the terminal; one that failed before is tried again.

    Raises:
        UserError: What the user can mend, after it has been entered in the ledger.
        Interrupted: By a signal, likewise.
    """
    _check_data([job], folder)
    if _has_record(folder, job):
        with _ledger([job], folder, command) as ledger:
            _not_done([job], ledger)
            return _outcome([job], [], ledger)
    with _ledger([job], folder, command) as ledger:
        entry = ledger.jobs[job.id]
        entry.state = "running"
        ledger.write()
        started = time.perf_counter()
        entry.state, entry.cause, error = run_job(job, folder / job.id, job.config.executor.threads_per_job)
        entry.seconds = round(time.perf_counter() - started, 2)
        entry.log = f"{job.id}/{LOG_FILE}" if (folder / job.id / LOG_FILE).exists() else None
        if isinstance(error, UserError | Interrupted):
            raise error
        return _outcome([job], [job], ledger)


@contextmanager
def _ledger(jobs: Sequence[Job], folder: Path, command: str) -> Iterator[Ledger]:
    """The sweep's ledger, written when the jobs are entered and again however they end."""
    remove_stale_temporaries(folder)
    ledger = Ledger.open(folder)
    ledger.add(command, [(job.id, job.overrides) for job in jobs])
    ledger.write()
    try:
        yield ledger
    except StorageError:
        with suppress(StorageError):  # the file that found no room first is named
            _close(ledger)
        raise
    except BaseException:
        _close(ledger)
        raise
    _close(ledger)


def _close(ledger: Ledger) -> None:
    """Write down how each job stands when the command ends."""
    for entry in ledger.jobs.values():
        if entry.state == "running":
            entry.state, entry.cause = "interrupted", "the command ended before the job did; run it again"
        elif entry.state == "pending":
            entry.state, entry.cause = "skipped", "the command ended before its turn; run it again"
    if all(entry.state == "ok" for entry in ledger.jobs.values()):
        shutil.rmtree(ledger.folder / STACKS_FOLDER, ignore_errors=True)  # of groups that were split since
    ledger.write()


def _not_done(jobs: Sequence[Job], ledger: Ledger) -> list[Job]:
    """Jobs without a record; those that failed before only on request."""
    todo = []
    for job in jobs:
        entry = ledger.jobs[job.id]
        if _has_record(ledger.folder, job):
            remove_resume_points(ledger.folder / job.id)
            entry.state, entry.cause = "ok", None
        elif entry.state not in ENDED_BADLY or job.config.retry_failed:
            todo.append(job)
    return todo


def _book(config: TrainConfig, where: Slots) -> CostBook:
    return CostBook(costs_file(config), "cpu" if where.devices[0] is None else "gpu", where.threads)


def _records(jobs: Iterable[Job], folder: Path) -> list[RunRecord]:
    return [RunRecord.read(folder / job.id) for job in jobs if _has_record(folder, job)]


def _log(lines: str) -> None:
    for line in lines.splitlines():
        logger.info("%s", line)


def _check_data(jobs: Sequence[Job], folder: Path) -> Datasets:
    """Refuse data that cannot be used, or that changed since a job that is done: its result would pass for new."""
    done = [job for job in jobs if _has_record(folder, job)]
    check_unchanged((job.config, RunRecord.read(folder / job.id)) for job in done)
    return check_data((job.config for job in jobs if job not in done), folder)


def _has_record(folder: Path, job: Job) -> bool:
    return (folder / job.id / RECORD_FILE).is_file()


def _slots(tasks: Sequence[Task], ledger: Ledger) -> Slots:
    config = tasks[0].jobs[0].config
    where = slots(config.executor, config.trainer, len(tasks), ledger.plan.get("threads_per_job"))
    ledger.plan["threads_per_job"] = where.threads
    return where


def _tasks(jobs: Sequence[Job], todo: Sequence[Job], ledger: Ledger) -> list[Task]:
    """Tasks for ``todo``, entered in the ledger's plan."""
    tasks = make_tasks(jobs, todo, ledger.plan.get("groups", []))
    ledger.regroup([[job.id for job in task.jobs] for task in tasks])
    return tasks


_LEDGER_S = 0.25  # least seconds between two times that a job's good end is written


class _Bookkeeper:
    """Enters in the ledger, and logs, what becomes of the jobs of a command."""

    def __init__(self, ledger: Ledger, plan: Plan, book: CostBook, common: frozenset[str]) -> None:
        self._ledger, self._book, self._common = ledger, book, common
        self._costs = {task.id: cost for task, cost in zip(plan.tasks, plan.costs, strict=True)}
        self._n_jobs = sum(len(task.todo) for task in plan.tasks)
        self._count = 0
        self._written = 0.0
        self.board = Board(self._n_jobs, self._name)

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
        self._ledger.write()
        self._written = time.perf_counter()

    def _name(self, job: Job) -> str:
        return " ".join(override for override in job.overrides if override not in self._common)

    def finished(self, task: Task, seconds: float) -> None:
        self._write()
        records = _records(task.todo, self._ledger.folder)
        if task.id in self._costs and len(records) == len(task.jobs):
            learn(self._book, task, self._costs[task.id], records, seconds)

    def split(self, task: Task, parts: Sequence[Task], cause: str) -> None:
        self.board.split(task)
        left = [job for part in parts for job in part.jobs]
        for job in left:
            self._ledger.jobs[job.id].state = "pending"
        self._ledger.regroup([[job.id for job in part.jobs] for part in parts])
        self._ledger.write()
        logger.info(
            "%d jobs that were trained together died (%s), see %s: %d of them again, in %d tasks",
            len(task.jobs), cause, task.log, len(left), len(parts),
        )  # fmt: skip


def _outcome(jobs: Sequence[Job], todo: Sequence[Job], ledger: Ledger) -> Outcome:
    bad = tuple(ledger.jobs[job.id] for job in jobs if ledger.jobs[job.id].state != "ok")
    return Outcome(ledger.folder, len(todo), len(jobs) - len(todo), len(jobs) - len(bad), bad, _common(jobs))


def _common(jobs: Sequence[Job]) -> frozenset[str]:
    """Overrides that tell no job of several from another."""
    return frozenset.intersection(*(frozenset(job.overrides) for job in jobs)) if len(jobs) > 1 else frozenset()


def _counts(jobs: Sequence[Job], todo: Sequence[Job], tasks: Sequence[Task]) -> str:
    done = f", {len(jobs) - len(todo)} done already" if len(todo) < len(jobs) else ""
    grouped = f" in {len(tasks)} tasks" if 1 < len(tasks) < len(todo) else " in one" if len(tasks) < len(todo) else ""
    return f"{len(todo)} {'job' if len(todo) == 1 else 'jobs'} to run{grouped}{done}"


def _describe(where: Slots) -> str:
    kind = "CPU" if where.devices[0] is None else "GPU"
    threads = "thread" if where.threads == 1 else "threads"
    return f"{len(where.devices)} at once on {kind}, {where.threads} {threads} each"
