"""Tasks on a cluster: submitted, followed by their journals and by what the cluster says of them."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from tl_experiments import interrupt
from tl_experiments.cache.locks import holder
from tl_experiments.errors import TrainingError, UserError
from tl_experiments.interrupt import Cancelled, Detached, Interrupted
from tl_experiments.sweeps.bookkeeping import has_record
from tl_experiments.sweeps.journal import JournalReader, journal_path, lock_path
from tl_experiments.sweeps.ledger import Submitted
from tl_experiments.sweeps.lock import CancelRequest, answer_cancel, asked_to_cancel
from tl_experiments.sweeps.reports import Listener, Reports
from tl_experiments.sweeps.standing import DIED, NO_RECORD, SHOWS_WITHIN_S, without_a_beginning
from tl_experiments.sweeps.tasks import Task

logger = logging.getLogger(__name__)

_TICK_S = 0.2  # between two looks whether a signal or a request came
_RESUME_POINT_S = 30.0  # that a task which was told to end may take for its resume point
_LAST_LINES_S = 5.0  # that the last lines of a journal that shows may take after the cluster says that a task has ended


@dataclass(frozen=True)
class Condition:
    """How a task stands with the cluster.

    Args:
        state: ``waiting`` in the queue, ``running``, or ``ended``, also where the cluster does not know it any more.
        detail: In a few words: why it waits, where it runs, why it ended.
        time_left_s: Until its limit; None where there is none.
        outside: It was ended from outside, by a person or a lost machine: no job of it is to blame, and all of them are
            left to the next command.
        log: From the sweep's folder, what its process printed before it wrote a log of its own; empty where there is no
            such file.
    """

    state: Literal["waiting", "running", "ended"]
    detail: str = ""
    time_left_s: float | None = None
    outside: bool = False
    log: str = ""


class UnansweredError(TrainingError):
    """The cluster was asked to do something and did not say whether it did: what was submitted may be there."""


class Cluster(Protocol):
    """A place with a queue. Handles are its own names of tasks, as text that another process understands."""

    @property
    def name(self) -> str:
        """As the ledger keeps it; ``executors.cluster_of`` opens it again from that."""

    @property
    def outlives(self) -> bool:
        """Whether tasks go on when the command has ended."""

    def submit(self, tasks: Sequence[Task], folder: Path, threads: int, token: str) -> list[str]:
        """Hand over the tasks, in this order; returns their handles. They can be found again by ``token``.

        Raises:
            UserError: The cluster refuses them.
            UnansweredError: It may have some.
        """

    def find(self, tasks: Sequence[Submitted], folder: Path) -> Mapping[str, str]:
        """Task id -> handle, of those of ``tasks`` that it has and that have not ended; their handles were lost.

        Raises:
            UserError: It cannot be asked.
        """

    def conditions(self, handles: Sequence[str]) -> Mapping[str, Condition]:
        """How each stands; one call of the cluster for all. A cluster that does not answer leaves handles out."""

    def cancel(self, handles: Sequence[str]) -> None:
        """End them, or take them from the queue.

        Raises:
            UserError: It cannot be asked; none may be taken for ended.
        """


@dataclass
class _Followed:
    """A task that the cluster has."""

    reports: Reports
    handle: str
    folder: Path
    journal: JournalReader
    held_back: list[dict[str, Any]] = field(default_factory=list)
    held_since: float | None = None
    begun: bool = False
    heard: bool = False
    over: bool = False
    ended_at: float | None = None
    outside: bool = False

    def listen(self, listener: Listener) -> None:
        """Take what the journal says; a good end only when its record can be read here."""
        lines, self.held_back = self.held_back + self.journal.news(), []
        for line in lines:
            match line:
                case {"event": "began"}:
                    self.heard, self.over, self.reports.last_word = True, False, None
                    self._begin(listener)
                case {"event": "ended", "job": job, "state": state, "cause": cause, "seconds": seconds}:
                    self._end(line, self._position(job), state, cause, seconds, listener)
                case {"event": "progress", "job": job, "done": done, "total": total}:
                    if (position := self._position(job)) is not None:
                        self.reports.take(("progress", position, done, total), listener)
                case {"event": "left", "state": state, "cause": cause, "final": final}:
                    self.reports.take(("left", state, cause, final), listener)
                case {"event": "over"}:
                    self.over = True
        if not self.held_back:
            self.held_since = None

    def see(self, condition: Condition | None, listener: Listener) -> None:
        """Take what the cluster says."""
        if condition is None:
            return
        if condition.state == "running":
            self._begin(listener)
        if condition.state != "ended":
            self.ended_at = None  # it was put back into the queue
        elif self.ended_at is None:
            self.ended_at = time.monotonic()
        self.outside = condition.outside

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is to be expected of it; a node that the cluster lost may go on computing."""
        if self.held_back:
            return False
        if self.over or not self.reports.left:
            return True
        patience_s = _LAST_LINES_S if self.heard or self.outside else SHOWS_WITHIN_S
        if self.ended_at is None or time.monotonic() - self.ended_at < patience_s:
            return False
        return holder(lock_path(self.folder, self.reports.task.id)) is None

    def conclude(self, condition: Condition | None, listener: Listener) -> list[Task]:
        """As of ``Reports``; a job whose record is there is done, also if it could not say so."""
        for position in sorted(self.reports.left):
            if has_record(self.folder, self.reports.task.jobs[position]):
                self.reports.take(("ended", position, "ok", None, 0.0), listener)
        death = (condition.detail if condition else "") or DIED
        if self.reports.last_word is not None:
            pass
        elif condition is not None and condition.outside:
            self.reports.last_word = "interrupted", f"{death}; run it again", True
        elif not self.heard:
            self.reports.last_word = "interrupted", without_a_beginning(condition), True
        return self.reports.conclude(listener, death)

    def _position(self, job: Any) -> int | None:
        ids = [one.id for one in self.reports.task.jobs]
        return ids.index(job) if job in ids else None

    def _end(
        self, line: dict[str, Any], position: int | None, state: str, cause: Any, seconds: float, listener: Listener
    ) -> None:
        if position is None:
            return
        if state == "ok" and not has_record(self.folder, self.reports.task.jobs[position]):
            self.held_since = self.held_since or time.monotonic()
            if time.monotonic() - self.held_since < SHOWS_WITHIN_S:
                self.held_back.append(line)
                return
            state, cause = "interrupted", NO_RECORD
        self.reports.take(("ended", position, state, cause, seconds), listener)

    def _begin(self, listener: Listener) -> None:
        if not self.begun:
            self.begun = True
            self.reports.started = time.perf_counter()
            listener.started(self.reports.task)


def run_on_cluster(
    tasks: Sequence[Task],
    folder: Path,
    threads: int,
    cluster: Cluster,
    known: Mapping[str, str],
    poll_s: float,
    listener: Listener,
) -> None:
    """Run ``tasks`` on ``cluster``. As with ``local.run_tasks``, a task of several that dies is tried again in halves.

    Args:
        tasks: In the order in which they are submitted.
        folder: Of the sweep.
        threads: CPU threads of a process.
        cluster: That takes them.
        known: Task id -> handle, of those that an earlier command submitted: they are followed, not submitted again.
        poll_s: Seconds between two looks.
        listener: Is told of everything.

    Raises:
        Detached: A signal asked the command to end, and the tasks go on.
        Interrupted: Likewise, where the cluster ends with the command.
        Cancelled: Another command asked this one to end all of them.
        UserError: The cluster refuses the tasks.
    """
    with interrupt.postponed():
        followed = [_follow(task, known[task.id], folder) for task in tasks if task.id in known]
        try:
            followed += _submit([task for task in tasks if task.id not in known], folder, threads, cluster, listener)
            while followed and interrupt.requested() is None:
                if request := asked_to_cancel(folder):
                    _cancel(followed, request, folder, cluster, listener)
                conditions = cluster.conditions([one.handle for one in followed])
                parts: list[Task] = []
                for one in list(followed):
                    condition = conditions.get(one.handle)
                    one.see(condition, listener)
                    one.listen(listener)
                    if one.has_ended:
                        parts += one.conclude(condition, listener)
                        followed.remove(one)
                followed += _submit(parts, folder, threads, cluster, listener)
                _rest(poll_s if followed else 0.0, folder)
            _end_what_is_left(followed, cluster, folder, listener)
        except (Detached, Cancelled):
            raise
        except BaseException as error:
            if not cluster.outlives and followed:
                cluster.cancel([one.handle for one in followed])
            if cluster.outlives and isinstance(error, Interrupted):  # a second signal, wherever it came
                raise Detached(error.signum, len(followed), cluster.name, folder) from None
            raise


def _end_what_is_left(followed: list[_Followed], cluster: Cluster, folder: Path, listener: Listener) -> None:
    """After a signal."""
    signum = interrupt.requested()
    if signum is not None and followed and cluster.outlives:
        raise Detached(signum, len(followed), cluster.name, folder)
    if followed:
        cluster.cancel([one.handle for one in followed])
    for one in followed:
        one.listen(listener)
        if not one.begun:
            one.reports.last_word = "skipped", "the command ended before its turn; run it again", True
        one.reports.abandon(listener)
    followed.clear()
    interrupt.check()


def _cancel(
    followed: list[_Followed], request: CancelRequest, folder: Path, cluster: Cluster, listener: Listener
) -> None:
    """End what another command asked for, and enter it."""
    concerned = [one for one in followed if request.concerns(job.id for job in one.reports.task.todo)]
    if concerned:
        cluster.cancel([one.handle for one in concerned])
        wait_for_ends(folder, [one.reports.task.id for one in concerned])
    for one in concerned:
        one.listen(listener)
        one.reports.cancel(listener)
        followed.remove(one)
    answer_cancel(folder)
    if request.jobs is None:
        raise Cancelled(len(concerned), cluster.name)


def _submit(tasks: Sequence[Task], folder: Path, threads: int, cluster: Cluster, listener: Listener) -> list[_Followed]:
    """Hand them over. The ledger knows of them before the cluster does: a kill in between must not hide them."""
    if not tasks:
        return []
    token = secrets.token_hex(8)
    with interrupt.patient():  # a second signal would hide what the first one let through
        listener.submitting(tasks, cluster.name, cluster.outlives, token)
        for task in tasks:
            journal_path(folder, task.id).unlink(missing_ok=True)  # of an earlier submission
        try:
            handles = cluster.submit(tasks, folder, threads, token)
        except UnansweredError:
            raise
        except UserError:
            listener.refused(tasks)
            raise
        listener.submitted(tasks, handles)
    return [_follow(task, handle, folder) for task, handle in zip(tasks, handles, strict=True)]


def _follow(task: Task, handle: str, folder: Path) -> _Followed:
    return _Followed(Reports(task), handle, folder, JournalReader(journal_path(folder, task.id)))


def wait_for_ends(folder: Path, ids: Iterable[str]) -> list[str]:
    """Wait until no process computes these tasks, 30 s at most; returns those that one still computes."""
    deadline = time.monotonic() + _RESUME_POINT_S
    left = list(ids)
    while (left := [one for one in left if holder(lock_path(folder, one)) is not None]) and time.monotonic() < deadline:
        time.sleep(_TICK_S)
    return left


def _rest(seconds: float, folder: Path) -> None:
    """Unless something is asked of this command."""
    end = time.monotonic() + seconds
    while interrupt.requested() is None and (left := end - time.monotonic()) > 0 and not asked_to_cancel(folder):
        time.sleep(min(_TICK_S, left))
