"""One command at a time in a sweep's folder, and how another asks it to end what it has on a cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tl_experiments import interrupt
from tl_experiments.cache.locks import Held, Holder, holder, try_hold
from tl_experiments.errors import UserError
from tl_experiments.records import write_atomically

LOCK_FILE = "sweep.lock"
_CANCEL_FILE = "sweep.cancel"
_held: dict[Path, Held] = {}  # folder -> the lock of the command of this process


@contextmanager
def running_here(folder: Path) -> Iterator[None]:
    """Keep other commands out of ``folder``; one that was killed keeps nobody out. An empty folder is not left behind.

    Raises:
        UserError: Another command runs in it, or it cannot be written.
    """
    there_before = folder.exists()
    held = None
    try:
        with interrupt.postponed():  # a signal in between would leave the file there
            held = _take(folder)
        _held[folder] = held
        interrupt.check()
        yield
    finally:
        _held.pop(folder, None)
        if held is not None:
            held.release()
        if not there_before:
            with suppress(OSError):  # it holds results
                folder.rmdir()


def check_ours(folder: Path) -> None:
    """That the command of this process still runs in ``folder`` alone, before it writes there; without one, nothing.

    Raises:
        UserError: It stood still, was taken for dead, and another command began.
    """
    held = _held.get(folder)
    if held is not None and held.is_lost():
        raise UserError(
            str(folder),
            f"this command stood still for a while, and another one took over: it is run {_by_whom(folder)}",
            "leave it to that one, or run this again after it",
        )


def runs_here(folder: Path) -> Holder | None:
    """The process of the command that runs in ``folder``, if one does."""
    return holder(folder / LOCK_FILE)


def by_whom(found: Holder) -> str:
    """Such as ``process 123 on node7 since 2026-01-31 12:00:00``."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.since))
    return f"process {found.pid} on {found.host.split()[0]} since {since}"


def ask_to_cancel(folder: Path, whom: Holder, jobs: Collection[str] | None) -> None:
    """Ask the command that runs in ``folder`` to end what it has on a cluster; see ``asked_to_cancel``.

    Args:
        folder: Of the sweep.
        whom: The command; another one will take no notice.
        jobs: Ids of jobs whose tasks are to end; None for all, and the command with them.
    """
    content = {**_identity(whom), "jobs": None if jobs is None else sorted(jobs)}
    write_atomically(folder / _CANCEL_FILE, json.dumps(content) + "\n")


@dataclass(frozen=True)
class CancelRequest:
    """What is to be cancelled.

    Args:
        jobs: Ids; None for all.
    """

    jobs: frozenset[str] | None

    def concerns(self, jobs: Iterable[str]) -> bool:
        """Whether one of these is among them."""
        return self.jobs is None or not self.jobs.isdisjoint(jobs)


def asked_to_cancel(folder: Path) -> CancelRequest | None:
    """What another command asked this one, which runs in ``folder``, to cancel."""
    try:
        content = json.loads((folder / _CANCEL_FILE).read_text(encoding="utf-8"))
        jobs = content.pop("jobs")
    except (OSError, ValueError, KeyError):
        return None
    own = runs_here(folder)
    if own is None or content != _identity(own):
        return None
    return CancelRequest(None if jobs is None else frozenset(jobs))


def is_asked_to_cancel(folder: Path) -> bool:
    """Whether ``ask_to_cancel`` waits for ``answer_cancel``."""
    return (folder / _CANCEL_FILE).exists()


def answer_cancel(folder: Path) -> None:
    """It is done, and entered in the ledger; or nobody is left to do it."""
    (folder / _CANCEL_FILE).unlink(missing_ok=True)


def _identity(found: Holder) -> dict[str, object]:
    return {"host": found.host, "pid": found.pid, "started": found.started, "since": found.since}


def _take(folder: Path) -> Held:
    try:
        held = try_hold(folder / LOCK_FILE)
    except OSError as error:
        raise UserError(str(folder), f"cannot be written ({error.strerror})", "give another output_dir=") from None
    if held is None:
        raise UserError(str(folder), f"is being run {_by_whom(folder)}", "wait for it, or give another name=")
    return held


def _by_whom(folder: Path) -> str:
    found = holder(folder / LOCK_FILE)
    if found is None:  # it ended or began in this moment
        return "by another command"
    return f"by {by_whom(found)}"
