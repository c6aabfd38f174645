"""One command's jobs: planned, entered in the ledger, run where they are not done yet."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tl_experiments.config.schema import TrainConfig
from tl_experiments.errors import StorageError, UserError
from tl_experiments.interrupt import Interrupted
from tl_experiments.records import STACKS_FOLDER, RunRecord, remove_resume_points, remove_stale_temporaries
from tl_experiments.sweeps.bookkeeping import Bookkeeper, finished_records, has_record
from tl_experiments.sweeps.claims import known, settle
from tl_experiments.sweeps.costs import CostBook
from tl_experiments.sweeps.display import shown
from tl_experiments.sweeps.executors import check_executor, execute, opened, places
from tl_experiments.sweeps.jobs import Job
from tl_experiments.sweeps.ledger import AT_WORK, ENDED_BADLY, SETTLED, Entry, Ledger
from tl_experiments.sweeps.local import Slots
from tl_experiments.sweeps.planner import (
    account,
    comparison,
    costs_file,
    make_plan,
    table,
    undecoded,
    unpriced,
)
from tl_experiments.sweeps.pricing import complete
from tl_experiments.sweeps.standing import WITH_THE_COMMAND
from tl_experiments.sweeps.tasks import LOG_FILE, Task, make_tasks
from tl_experiments.sweeps.tuning import Choose, Stages, stages
from tl_experiments.sweeps.worker import RunJob, run_job
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


def run_sweep(jobs: Sequence[Job], folder: Path, command: str, choose: Choose | None = None) -> Outcome:
    """Run the jobs that are not done, each in a process of its own, and enter how each ended in ``sweep.json``.

    Args:
        jobs: All of the command.
        folder: Of the sweep.
        command: As it was typed.
        choose: Takes one of an arm's settings, by val; for ``tuning_seed``.

    Raises:
        UserError: Before anything is entered, if the executor would not take the jobs.
        DataError: Before any job starts, if a dataset cannot be used as it stands.
    """
    planned = stages(jobs)
    check_executor([job for job in jobs if not has_record(folder, job)])
    datasets = _check_data(jobs, folder)
    with _ledger(jobs, folder, command) as ledger:
        if planned.arms:
            logger.info("tuning on seed %s first, then the other seeds with what val chose", jobs[0].config.tuning_seed)
        trained = _run(jobs, planned.first, ledger, datasets)
        if planned.arms and not _may_choose(planned.first, jobs, ledger):
            return _outcome(jobs, trained, ledger)
        if planned.arms:
            second, left_out = _second(planned, folder, choose)
            for job_id, cause in left_out.items():
                ledger.jobs[job_id].state, ledger.jobs[job_id].cause = "unchosen", cause
            _enter_done(jobs, ledger)  # one may have run in a sweep without tuning
            trained += _run(jobs, second, ledger, datasets)
            if left_out:
                seed = jobs[0].config.tuning_seed
                logger.info(
                    "tuned on seed %s: %d jobs of settings that val did not choose are left out", seed, len(left_out)
                )
        return _outcome(jobs, trained, ledger)


def _may_choose(first: Sequence[Job], jobs: Sequence[Job], ledger: Ledger) -> bool:
    """Whether all settings were tried; one that was cancelled, say, is still to run, and the rest waits for it."""
    untried = sum(ledger.jobs[job.id].state not in (*SETTLED, *ENDED_BADLY) for job in first)
    if untried:
        seed = jobs[0].config.tuning_seed
        why = f"{untried} of {len(first)} jobs with seed {seed} have not ended"
        logger.info("%s: val chooses, and the other seeds run, when the same command has run them", why)
        for entry in (ledger.jobs[job.id] for job in jobs if job not in first):
            if entry.state == "pending":
                entry.state, entry.cause = "skipped", f"{why}; run it again"
    return not untried


def _second(planned: Stages, folder: Path, choose: Choose | None) -> tuple[list[Job], dict[str, str]]:
    """What the jobs that have finished say of the rest; see ``Stages.second``."""
    assert choose is not None, "jobs of a sweep with tuning_seed come with a way to choose"
    return planned.second({record.job_id: record for record in finished_records(planned.first, folder)}, choose)


def _run(jobs: Sequence[Job], wanted: Sequence[Job], ledger: Ledger, datasets: Datasets) -> int:
    """Run those of ``wanted`` that are not done; returns how many were to run."""
    todo, folder = _not_done(wanted, ledger), ledger.folder
    if not todo:
        return 0
    executor = todo[0].config.executor
    cluster = opened(executor)
    if settle(ledger, make_tasks(jobs, todo, ledger.plan.get("groups", [])), cluster):
        todo = _not_done(wanted, ledger)
        if not todo:
            return 0
    tasks = _tasks(jobs, todo, ledger)
    where = _slots(tasks, ledger)
    logger.info("sweep %s: %s, %s", folder, _counts(wanted, todo, tasks), _describe(where))
    if len(todo) == 1:  # of a single run people expect to see its epochs
        logger.info("its log: %s; tl logs %s %s --follow shows it", folder / tasks[0].log, folder, todo[0].id)
    book = _book(todo[0].config, where)
    plan = make_plan(tasks, datasets, book, len(where.devices))
    _log(table(plan))
    started = time.perf_counter()
    keeper = Bookkeeper(ledger, plan, book, _common(jobs))
    there = known(ledger, tasks, cluster)
    if there:
        _tell_who_is_not_retried([job for task in tasks if task.id in there for job in task.todo], ledger)
        keeper.follows([task for task in tasks if task.id in there], list(there.values()))
    with shown(keeper.board):
        execute(tasks, folder, where, executor, cluster, there, keeper)
    book.write()
    spent = account(plan, finished_records(todo, folder), time.perf_counter() - started)
    ledger.plan.setdefault("costs", []).append(spent)
    _log(comparison(spent))
    return len(todo)


def _tell_who_is_not_retried(followed: Sequence[Job], ledger: Ledger) -> None:
    failed = sum(ledger.jobs[job.id].state in ENDED_BADLY for job in followed)
    if failed:
        logger.warning(
            "%d jobs that failed are of tasks that go on with others: retry_failed=true runs them again after these "
            "tasks have ended, by the same command",
            failed,
        )


def preview(jobs: Sequence[Job], folder: Path, choose: Choose | None = None) -> str:
    """What ``run_sweep`` would run, and what that would cost; prices that are not known are measured.

    Args:
        jobs: All of the command.
        folder: Of the sweep.
        choose: As in ``run_sweep``.

    Raises:
        DataError: If a dataset cannot be used as it stands.
    """
    planned = stages(jobs)
    here = jobs[0].config.executor.name == "local"
    if here:  # a plan may be asked for where a cluster is not
        check_executor([job for job in jobs if not has_record(folder, job)])
    datasets = _check_data(jobs, folder)
    ledger = Ledger.open(folder)
    ledger.add("", [(job.id, job.overrides) for job in jobs])
    wanted, later = list(planned.first), len(jobs) - len(planned.first)
    todo = _not_done(wanted, ledger)
    if not todo and planned.arms:
        wanted, later = _second(planned, folder, choose)[0], 0
        todo = _not_done(wanted, ledger)
    if not todo:
        return f"nothing to run: {len(jobs)} of {len(jobs)} jobs have ended in {folder}"
    tasks = _tasks(jobs, todo, ledger)
    where = _slots(tasks, ledger)
    book = _book(todo[0].config, where)
    if here:  # this machine's prices are not a cluster's
        complete(book, unpriced(tasks, book), undecoded(tasks, book), where)
    plan = make_plan(tasks, datasets, book, len(where.devices))
    text = f"{folder}: {_counts(wanted, todo, tasks)}, {_describe(where)}\n{table(plan)}"
    if later:
        seed = jobs[0].config.tuning_seed
        text += f"\nthen, of {later} more jobs, those with the settings that val chooses with seed {seed}"
    return text


def run_single(job: Job, folder: Path, command: str, run: RunJob = run_job) -> Outcome:
    """Run one job in this process, with its output on the terminal; one that failed before is tried again.

    Args:
        job: The only one of the command.
        folder: Of the sweep.
        command: As it was typed.
        run: What trains it.

    Raises:
        UserError: What the user can mend, after it has been entered in the ledger.
        Interrupted: By a signal, likewise.
    """
    _check_data([job], folder)
    if has_record(folder, job):
        with _ledger([job], folder, command) as ledger:
            _not_done([job], ledger)
            return _outcome([job], 0, ledger)
    with _ledger([job], folder, command) as ledger:
        settle(ledger, make_tasks([job], [job], []), None)
        entry = ledger.jobs[job.id]
        entry.state = "running"
        ledger.write()
        started = time.perf_counter()
        entry.state, entry.cause, error = run(job, folder / job.id, job.config.executor.threads_per_job)
        entry.seconds = round(time.perf_counter() - started, 2)
        entry.log = f"{job.id}/{LOG_FILE}" if (folder / job.id / LOG_FILE).exists() else None
        if isinstance(error, UserError | Interrupted):
            raise error
        return _outcome([job], 1, ledger)


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
    elsewhere = ledger.on_a_cluster()
    for entry in ledger.jobs.values():
        if entry.id in elsewhere:
            continue
        if entry.state in AT_WORK:
            entry.state, entry.cause = "interrupted", WITH_THE_COMMAND
        elif entry.state == "pending":
            entry.state, entry.cause = "skipped", "the command ended before its turn; run it again"
    ledger.forget_ended()
    if all(entry.state in SETTLED for entry in ledger.jobs.values()):
        shutil.rmtree(ledger.folder / STACKS_FOLDER, ignore_errors=True)  # of groups that were split since
    ledger.write()


def _not_done(jobs: Sequence[Job], ledger: Ledger) -> list[Job]:
    """Jobs without a record; those that failed before only on request."""
    done = _enter_done(jobs, ledger)
    return [
        job
        for job in jobs
        if job.id not in done and (ledger.jobs[job.id].state not in ENDED_BADLY or job.config.retry_failed)
    ]


def _enter_done(jobs: Sequence[Job], ledger: Ledger) -> set[str]:
    """Enter the jobs that have a record as done; returns their ids."""
    done = [job for job in jobs if has_record(ledger.folder, job)]
    for job in done:
        remove_resume_points(ledger.folder / job.id)
        entry = ledger.jobs[job.id]
        entry.state, entry.cause = "ok", None
        if entry.seconds is None:  # no command was there when it ended
            entry.seconds = round(RunRecord.read(ledger.folder / job.id).wall_clock_s, 2)
    return {job.id for job in done}


def _book(config: TrainConfig, where: Slots) -> CostBook:
    return CostBook(costs_file(config), "cpu" if where.devices[0] is None else "gpu", where.threads)


def _log(lines: str) -> None:
    for line in lines.splitlines():
        logger.info("%s", line)


def _check_data(jobs: Sequence[Job], folder: Path) -> Datasets:
    """Refuse data that cannot be used, or that changed since a job that is done: its result would pass for new."""
    done = [job for job in jobs if has_record(folder, job)]
    check_unchanged((job.config, RunRecord.read(folder / job.id)) for job in done)
    return check_data((job.config for job in jobs if job not in done), folder)


def _slots(tasks: Sequence[Task], ledger: Ledger) -> Slots:
    config = max((task.jobs[0].config for task in tasks), key=lambda config: config.trainer.devices)
    where = places(config.executor, config.trainer, len(tasks), ledger.plan.get("threads_per_job"))
    ledger.plan["threads_per_job"] = where.threads
    return where


def _tasks(jobs: Sequence[Job], todo: Sequence[Job], ledger: Ledger) -> list[Task]:
    """Tasks for ``todo``, entered in the ledger's plan."""
    tasks = make_tasks(jobs, todo, ledger.plan.get("groups", []))
    ledger.regroup([[job.id for job in task.jobs] for task in tasks])
    return tasks


def _outcome(jobs: Sequence[Job], trained: int, ledger: Ledger) -> Outcome:
    entries = [ledger.jobs[job.id] for job in jobs]
    bad = tuple(entry for entry in entries if entry.state not in SETTLED)
    ok = sum(entry.state == "ok" for entry in entries)
    return Outcome(ledger.folder, trained, ok + len(bad) - trained, ok, bad, _common(jobs))


def _common(jobs: Sequence[Job]) -> frozenset[str]:
    """Overrides that tell no job from another."""
    return frozenset.intersection(*(frozenset(job.overrides) for job in jobs))


def _counts(jobs: Sequence[Job], todo: Sequence[Job], tasks: Sequence[Task]) -> str:
    done = f", {len(jobs) - len(todo)} done already" if len(todo) < len(jobs) else ""
    grouped = f" in {len(tasks)} tasks" if 1 < len(tasks) < len(todo) else " in one" if len(tasks) < len(todo) else ""
    return f"{len(todo)} {'job' if len(todo) == 1 else 'jobs'} to run{grouped}{done}"


def _describe(where: Slots) -> str:
    device = where.devices[0]
    kind = "CPU" if device is None else f"{n} GPUs each" if (n := len(device.split(","))) > 1 else "GPU"
    threads = "thread" if where.threads == 1 else "threads"
    return f"{len(where.devices)} at once on {kind}, {where.threads} {threads} a process"
