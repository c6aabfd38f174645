"""What happens inside a job's own process."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

from tl_experiments import interrupt
from tl_experiments.errors import DivergedError, UserError, first_line
from tl_experiments.interrupt import Interrupted
from tl_experiments.sweeps.jobs import Job
from tl_experiments.sweeps.ledger import State

LOG_FILE = "job.log"
OUT_OF_MEMORY_HINT = "lower trainer.batch_size or backbone.preprocessing.image_size"


def work(
    job: Job, folder: Path, threads: int | None, environment: Mapping[str, str], report: connection.Connection
) -> None:
    """Run ``job`` in this process and send (state, cause) through ``report``; the log goes to ``job.log``.

    A process that dies before it can report is told from its exit code by the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the parent decides
    interrupt.install((signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2), at_once=True)
    os.environ.update(environment)
    _write_output_to(folder / LOG_FILE)
    _end_with_the_parent()
    state, cause, _ = run_job(job, folder, threads)
    if cause is not None:
        logging.getLogger("tl_experiments").error("%s: %s", state, cause)
    report.send((state, cause))
    report.close()


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
        return state, cause, error
    return "ok", None, None


def how_it_ended(error: Exception) -> tuple[State, str]:
    """State and one-line cause of a run that raised ``error``."""
    from tl_experiments.training.memory import is_out_of_memory

    if isinstance(error, DivergedError):
        return "diverged", str(error)
    if isinstance(error, UserError):
        return "failed", str(error)
    if is_out_of_memory(error):
        return "oom", f"{first_line(error)} -> {OUT_OF_MEMORY_HINT}"
    return "failed", f"{type(error).__name__}: {first_line(error)}"


class _CurrentStderr(logging.StreamHandler[Any]):
    """Writes to what ``sys.stderr`` is at the moment: a progress bar replaces it to print above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def start_logging() -> None:
    """Our lines, without decoration, to stderr."""
    logger = logging.getLogger("tl_experiments")
    handler = _CurrentStderr()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _write_output_to(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
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
