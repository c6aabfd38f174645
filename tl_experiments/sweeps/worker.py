"""What happens inside a task's own process."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

from tl_experiments import interrupt
from tl_experiments.errors import UserError
from tl_experiments.interrupt import Interrupted
from tl_experiments.safe_text import one_line
from tl_experiments.sweeps.jobs import Job
from tl_experiments.sweeps.ledger import State
from tl_experiments.sweeps.tasks import LOG_FILE, Task
from tl_experiments.training.ending import how_it_ended

logger = logging.getLogger(__name__)

Send = Callable[[tuple[Any, ...]], None]


def work(
    task: Task, folder: Path, threads: int | None, environment: Mapping[str, str], report: connection.Connection
) -> None:
    """Run ``task`` in this process, its log in ``task.log``, and send through ``report``, as things happen:

    - ``("ended", position, state, cause, seconds)`` for a job,
    - ``("progress", position, done, total)`` of a job's steps, some times a second,
    - last ``("left", state, cause, final)`` where the jobs that have not ended share one cause, which is ``final``
      unless smaller tasks might do better.

    A process that dies before it can report is told from its exit code by the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the parent decides
    interrupt.install((signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2), at_once=True)
    os.environ.update(environment)
    write_output_to(folder / task.log, anew=True)
    _end_with_the_parent()
    run_task(task, folder, threads, report.send)
    report.close()


def run_task(task: Task, folder: Path, threads: int | None, send: Send) -> None:
    """Train the jobs of ``task`` and ``send`` how they end, as ``work`` says. ``sys.exit`` passes through."""

    def ended(position: int, state: str, cause: str | None, seconds: float) -> None:
        if cause is not None:
            logger.error("%s: %s: %s", task.jobs[position].id, state, cause)
        send(("ended", position, state, cause, seconds))

    try:
        import torch

        from tl_experiments.training.together import run_together

        if threads is not None:
            torch.set_num_threads(threads)
        jobs = [(job.config, folder / job.id) for job in task.jobs]
        run_together(jobs, task.shared, ended, done=task.done, progress=Paced(send))
    except Interrupted as error:
        send(("left", "interrupted", f"{error}; run it again", True))
    except Exception as error:
        state, cause = how_it_ended(error)
        final = isinstance(error, UserError)
        if not final or task.jobs[0].config.debug.traceback:
            traceback.print_exc()
        logger.error("%s: %s", state, cause)
        send(("left", state, cause, final))


class Paced:
    """Sends a job's progress, but not more often than anybody looks."""

    def __init__(self, send: Send, interval_s: float = 0.25) -> None:
        self._send, self._interval_s, self._next = send, interval_s, 0.0

    def __call__(self, position: int, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._interval_s
            self._send(("progress", position, done, total))


def run_job(job: Job, folder: Path, threads: int | None) -> tuple[State, str | None, BaseException | None]:
    """Run ``job``; returns (``ok``, None, None), or state, one-line cause and error. ``sys.exit`` passes through."""
    try:
        import torch

        from tl_experiments.training.run import run

        if threads is not None:
            torch.set_num_threads(threads)
        run(job.config, folder)
    except Interrupted as error:
        return "interrupted", f"{error}; run it again", error
    except Exception as error:
        if job.config.debug.traceback:
            traceback.print_exc()
        state, cause = how_it_ended(error)
        if state == "failed" and not isinstance(error, UserError):
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / LOG_FILE).open("a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
        return state, cause, error  # type: ignore[return-value]
    return "ok", None, None


class _CurrentStderr(logging.StreamHandler[Any]):
    """Writes to what ``sys.stderr`` is at the moment: a progress bar replaces it to print above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _Lines(logging.Formatter):
    """Names of files and classes stand in our lines, and could steer a terminal, also one that shows a log."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return one_line(super().formatMessage(record))


def start_logging() -> None:
    """Our lines, without decoration, to stderr."""
    logger = logging.getLogger("tl_experiments")
    handler = _CurrentStderr()
    handler.setFormatter(_Lines("%(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def write_output_to(path: Path, *, anew: bool) -> None:
    """Send all that this process prints to ``path``, after what is there or instead of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if anew else 0)
    descriptor = os.open(path, flags, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    start_logging()


def _end_with_the_parent() -> None:
    """A job must not outlive the command that started it, however that ended."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent watch").start()
