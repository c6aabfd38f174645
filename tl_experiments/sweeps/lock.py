"""One command at a time in a sweep's folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tl_experiments import interrupt
from tl_experiments.cache.locks import Held, holder, try_hold
from tl_experiments.errors import UserError

LOCK_FILE = "sweep.lock"


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
        interrupt.check()
        yield
    finally:
        if held is not None:
            held.release()
        if not there_before:
            with suppress(OSError):  # it holds results
                folder.rmdir()


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
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.since))
    return f"by process {found.pid} on {found.host.split()[0]} since {since}"
