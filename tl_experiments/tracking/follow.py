"""Feeds one tracker from a sweep's folder, live, until the command has ended and everything is entered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from tl_experiments.safe_text import plain, redacted_text
from tl_experiments.tracking.entries import Entered
from tl_experiments.tracking.runs import Reader, Run

_POLL_S = 1.0
_REST = 20  # seconds of rest for each second of work: trackers leave the processor to training
_LONGEST_RETRY_S = 60.0


class Tracker(Protocol):
    """Where runs are entered. Each method may raise, and is then called again later.

    Args:
        whole: Whether what it writes is made anew from all runs of the sweep.
    """

    whole: bool

    def update(self, run: Run) -> None:
        """Enter what is not there yet of a run that changed."""

    def flush(self) -> None:
        """Called after all runs that changed were updated."""

    def close(self) -> None:
        """Wait for what is under way."""

    def holds(self, run: Run) -> Entered:
        """What is there of a run."""

    def forget(self, run: Run) -> None:
        """Let the next ``update`` enter the run again, from the beginning."""

    def missing(self) -> Iterator[str]:
        """Lines on what has not reached its place, and how to send it there."""


def follow(
    folder: Path, name: str, tracker: Tracker, ended: Callable[[float], bool], say: Callable[[str], None]
) -> None:
    """Enter runs as they change. What fails is tried again, and said once.

    Args:
        folder: Of the sweep.
        name: Of the tracker, for messages.
        tracker: Where to enter.
        ended: Waits so many seconds at most; True once the command has ended.
        say: Takes lines for the user.
    """
    reader, pause, failures, over = Reader(folder), 0.0, 0, False
    while not over:
        over = ended(pause)
        worked = time.process_time()
        try:
            for run in reader.changed(over):
                tracker.update(run)
            tracker.flush()
            failures = 0
        except Exception as error:
            failures += 1
            if over:
                say(f"{name}: not all is entered ({reason(error)}); the same command again enters the rest")
            elif failures == 1:
                say(f"{name}: {reason(error)}; training goes on, and this is tried again")
        pause = max(_POLL_S, _REST * (time.process_time() - worked))
        if failures:
            pause = max(pause, min(_LONGEST_RETRY_S, 2.0**failures))
    tracker.close()


def reason(error: BaseException) -> str:
    """First line of an error, without secrets and control codes."""
    lines = str(error).strip().splitlines()
    return plain(redacted_text(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__))[:300]
