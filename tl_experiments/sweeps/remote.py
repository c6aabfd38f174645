"""What happens inside a task's process on a cluster: it may be there a second time, after a kill or a time limit."""

from __future__ import annotations

import logging
import os
import platform
import signal
import time
from dataclasses import replace
from pathlib import Path

from tl_experiments import interrupt
from tl_experiments.cache.locks import Held, holder, try_hold
from tl_experiments.errors import OK, SOME_FAILED
from tl_experiments.sweeps.bookkeeping import has_record
from tl_experiments.sweeps.journal import Journal, JournalReader, journal_path, lock_path
from tl_experiments.sweeps.launched import Launched, launched
from tl_experiments.sweeps.local import server
from tl_experiments.sweeps.ranks import run_ranks
from tl_experiments.sweeps.tasks import Task
from tl_experiments.sweeps.worker import run_task, write_output_to

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_LOOK_S = 1.0  # between two looks whether a lock is free


def work_remotely(task: Task, folder: Path, threads: int | None, where: str) -> int | None:
    """Run ``task`` in this process; jobs of it that are done, or that an earlier turn saw fail, are left alone.

    On several devices srun has started as many processes, all of which call this: the first does what is said here, the
    others train with it. Where the cluster has started one process, that starts the others, on its machine.

    A node that the cluster lost may go on computing: whoever holds the task's lock runs it, a second process waits for
    the first and then finds its records.

    Args:
        task: As it was submitted.
        folder: Of the sweep.
        threads: Of torch; None leaves them.
        where: The cluster's name for this turn, for the journal.

    Returns:
        The signal that asked it to end, after the run has written its resume point; None where it came to its end.
        ``interrupt`` keeps the signals.
    """
    interrupt.install(SIGNALS, at_once=True, insist=False)
    together = launched() if task.jobs[0].config.trainer.name != "default" else None
    if together is None:
        _work(task, folder, threads, where, None)
    elif together.first:
        together.lead(lambda: _work(task, folder, threads, where, together))
    else:
        together.take_part(task, folder, threads)
    return interrupt.requested()


def _work(task: Task, folder: Path, threads: int | None, where: str, together: Launched | None) -> int:
    write_output_to(folder / task.log, anew=False)
    path = journal_path(folder, task.id)
    journal = Journal(path, {position: job.id for position, job in enumerate(task.jobs)})
    try:
        with _lock(folder, task):
            said = JournalReader(path).news()  # by earlier turns
            if any(line["event"] == "over" for line in said):
                return OK
            journal.began(where=where, host=platform.node())
            ended = {line["job"] for line in said if line["event"] == "ended"}
            told = frozenset(position for position, job in enumerate(task.jobs) if job.id in ended)
            done = told | {position for position, job in enumerate(task.jobs) if has_record(folder, job)}
            for position in sorted(done - task.done - told):  # of a turn that was cut before it could say so
                journal.send(("ended", position, "ok", None, 0.0))
            if len(task.done | done) < len(task.jobs):
                _run(replace(task, done=task.done | done), folder, threads, journal, together)
            if interrupt.requested() is None:
                journal.over()
    except interrupt.Interrupted:  # while it waited
        pass
    return OK


def _run(task: Task, folder: Path, threads: int | None, journal: Journal, together: Launched | None) -> None:
    if together is not None:

        def died(cause: str) -> None:
            journal.send(("left", "failed", cause, True))
            journal.over()

        with together.training(died):
            run_task(task, folder, threads, together.blaming(journal.send))
    elif task.jobs[0].config.trainer.name != "default":
        run_ranks(server(alone=True), task, folder, threads, journal.send)
    else:
        run_task(task, folder, threads, journal.send)


def _lock(folder: Path, task: Task) -> Held:
    path = lock_path(folder, task.id)
    waits = False
    while (held := try_hold(path, _taken_over)) is None:
        if not waits:
            by = holder(path)
            logger.info("waiting for process %s of an earlier turn of this task", by.pid if by else "?")
        waits = True
        time.sleep(_LOOK_S)
    return held


def _taken_over() -> None:
    """This process stood still, and another one has the task by now: nothing of it may be written here any more."""
    logger.error("this process stood still for a while and was taken for dead: another one goes on with its task")
    os._exit(SOME_FAILED)
