"""What a task says of its jobs while it runs somewhere else, and what becomes of those of which it said nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tl_experiments.sweeps.jobs import Job
from tl_experiments.sweeps.standing import CANCELLED
from tl_experiments.sweeps.tasks import Task

_NOT_IN_TIME = ("interrupted", "ended before it could write a resume point; run it again")


class Listener(Protocol):
    """What an executor tells of, as it happens."""

    def submitting(self, tasks: Sequence[Task], cluster: str, outlives: bool, token: str) -> None:
        """They are about to be handed to a cluster; an executor without a queue does not call this.

        Args:
            tasks: In order.
            cluster: Its name, as the ledger keeps it.
            outlives: Whether they go on there when the command has ended.
            token: Of this submission.
        """

    def submitted(self, tasks: Sequence[Task], handles: Sequence[str]) -> None:
        """The cluster has them, under these names."""

    def refused(self, tasks: Sequence[Task]) -> None:
        """The cluster did not take them."""

    def started(self, task: Task) -> None:
        """It runs."""

    def progressed(self, job: Job, done: int, total: int) -> None:
        """Steps of its training."""

    def ended(self, job: Job, state: str, cause: str | None, seconds: float) -> None:
        """It has a state of the ledger, a one-line cause unless that is ``ok``, and its seconds."""

    def finished(self, task: Task, seconds: float) -> None:
        """Its process has ended and all of its jobs have."""

    def split(self, task: Task, parts: Sequence[Task], cause: str) -> None:
        """The task died of ``cause``; what had not ended is tried again in ``parts``."""


@dataclass
class Reports:
    """What a task has said by now; the messages are those that ``worker.run_task`` sends.

    Args:
        task: That runs.
        started: By ``time.perf_counter()``.
    """

    task: Task
    started: float = field(default_factory=time.perf_counter)
    last_word: tuple[str, str, bool] | None = None  # state, cause, whether it is final

    def __post_init__(self) -> None:
        self.left = set(range(len(self.task.jobs))) - self.task.done

    def take(self, message: tuple[Any, ...], listener: Listener) -> None:
        """Pass a message on; what was said of a job before is not said again."""
        match message:
            case "ended", position, state, cause, seconds if position in self.left:
                self.left.discard(position)
                listener.ended(self.task.jobs[position], state, cause, seconds)
            case "progress", position, done, total:
                listener.progressed(self.task.jobs[position], done, total)
            case "left", state, cause, final:
                self.last_word = state, cause, final

    def cancel(self, listener: Listener) -> None:
        """It was ended on request: what had not ended is left to the next command."""
        self._end(listener, "interrupted", CANCELLED)

    def abandon(self, listener: Listener) -> None:
        """It was asked to end and did: what had not ended is left to the next command.

        A word that is not final, such as that memory ran out, is one on the whole task: smaller ones would have been
        tried.
        """
        state, cause = _NOT_IN_TIME if self.last_word is None or not self.last_word[2] else self.last_word[:2]
        self._end(listener, state, cause)

    def conclude(self, listener: Listener, death: str) -> list[Task]:
        """What is to be done for the jobs that the task left behind, now that it runs no more.

        Args:
            listener: Is told.
            death: Why it ended, if it did not say so itself.

        Returns:
            Tasks to try them again in.
        """
        if not self.left:
            listener.finished(self.task, time.perf_counter() - self.started)
            return []
        state, cause, final = self.last_word or ("failed", death, False)
        if len(self.task.jobs) > 1 and not final:
            parts = self.task.split(sorted(self.left))
            listener.split(self.task, parts, cause)
            return parts
        self._end(listener, state, cause)
        return []

    def _end(self, listener: Listener, state: str, cause: str) -> None:
        for position in sorted(self.left):
            listener.ended(self.task.jobs[position], state, cause, time.perf_counter() - self.started)
        self.left.clear()
