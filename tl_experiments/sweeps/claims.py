"""What earlier commands have on clusters, before a new one runs: no job is computed by two tasks at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tl_experiments.cache.locks import holder
from tl_experiments.errors import UserError
from tl_experiments.sweeps.bookkeeping import from_to
from tl_experiments.sweeps.cluster import Cluster, Condition, wait_for_ends
from tl_experiments.sweeps.executors import cluster_of
from tl_experiments.sweeps.journal import lock_path
from tl_experiments.sweeps.ledger import Ledger, Submitted
from tl_experiments.sweeps.lock import by_whom
from tl_experiments.sweeps.standing import SHOWS_WITHIN_S, TaskStanding, enter, enter_cancelled, standing
from tl_experiments.sweeps.tasks import Task

logger = logging.getLogger(__name__)

_LOOK_S = 1.0  # between two looks
_NEVER_THERE = Condition("ended", "it was not submitted to the end", outside=True)


def settle(ledger: Ledger, tasks: Sequence[Task], cluster: Cluster | None) -> bool:
    """Enter the ends of tasks of earlier commands that have jobs of ``tasks`` and that this command cannot follow.

    Args:
        ledger: Of the sweep, whose lock is held.
        tasks: That the command would run.
        cluster: Where; None on this machine.

    Returns:
        Whether an end was entered.

    Raises:
        UserError: One of them has not ended, or nobody can say.
    """
    wanted = {job.id for task in tasks for job in task.todo}
    ours = {task.id for task in tasks} if cluster is not None else set()
    # nobody saw all of its submission: it is ended, and submitted again
    orphans = [
        task
        for task in ledger.tasks.values()
        if task.id in ours
        and task.outlives
        and not task.handle
        and cluster is not None
        and task.cluster == cluster.name
    ]
    if cluster is not None and orphans:
        end(orphans, ledger.folder, cluster)
        for task in orphans:
            enter_cancelled(ledger, task)
    others = [
        task
        for task in ledger.tasks.values()
        if not wanted.isdisjoint(task.jobs)
        and not (task.id in ours and task.outlives and cluster is not None and task.cluster == cluster.name)
    ]
    found, silent = ask(others, ledger.folder, cluster)
    standings = _standings(ledger, others, found)
    alive = [task for task in others if not standings[task.id].gone]
    if alive:
        raise _at_work(ledger, alive, wanted, cluster, silent)
    for task in others:
        enter(ledger, task, standings[task.id])
    if cluster is None and (computed := wait_for_ends(ledger.folder, [task.id for task in tasks])):
        by = holder(lock_path(ledger.folder, computed[0]))
        what = f"{len(computed)} of these tasks still computed by {by_whom(by)}" if by else "was still computed"
        raise UserError(str(ledger.folder), what, "wait for it")
    return bool(others or orphans)


def end(tasks: Sequence[Submitted], folder: Path, cluster: Cluster) -> None:
    """End tasks of a cluster, also those whose handles were lost, and wait for their resume points.

    Raises:
        UserError: It cannot be asked.
    """
    lost = [task for task in tasks if not task.handle]
    handles = [task.handle for task in tasks if task.handle]
    if lost:
        handles += cluster.find(lost, folder).values()
    if handles:
        cluster.cancel(handles)
        wait_for_ends(folder, [task.id for task in tasks])


def _standings(ledger: Ledger, tasks: Sequence[Submitted], found: Mapping[str, Condition]) -> dict[str, TaskStanding]:
    """How each stands, once files that other machines have just written show here."""
    deadline = None
    while True:
        standings = {task.id: standing(ledger.folder, task, found.get(task.id), followed=False) for task in tasks}
        late = [task_id for task_id, one in standings.items() if one.gone and one.unseen]
        if not late or (deadline is not None and time.monotonic() > deadline):
            return standings
        if deadline is None:
            deadline = time.monotonic() + SHOWS_WITHIN_S
            logger.info(
                "waiting for what %d tasks may have written to show here, %.0f s at most", len(late), SHOWS_WITHIN_S
            )
        time.sleep(_LOOK_S)


def known(ledger: Ledger, tasks: Sequence[Task], cluster: Cluster | None) -> dict[str, str]:
    """Task id -> handle, of the ``tasks`` that ``cluster`` has already."""
    has = {task.id: task for task in ledger.tasks.values() if task.handle and task.outlives}
    return {
        task.id: has[task.id].handle
        for task in tasks
        if cluster is not None and task.id in has and has[task.id].cluster == cluster.name
    }


def ask(
    tasks: Sequence[Submitted], folder: Path, opened: Cluster | None = None
) -> tuple[dict[str, Condition], dict[str, str]]:
    """What their clusters say of tasks.

    Args:
        tasks: Of any clusters; those that end with their command are not asked for.
        folder: Of the sweep.
        opened: One of the clusters, if it is open already.

    Returns:
        Task id -> its condition; and cluster -> why it cannot be asked.
    """
    by_cluster: dict[str, list[Submitted]] = {}
    for task in tasks:
        if task.outlives:
            by_cluster.setdefault(task.cluster, []).append(task)
    found: dict[str, Condition] = {}
    silent: dict[str, str] = {}
    for name, there in by_cluster.items():
        try:
            cluster = opened if opened is not None and opened.name == name else cluster_of(name)
            handles = {task.id: task.handle for task in there if task.handle}
            if lost := [task for task in there if not task.handle]:
                handles |= cluster.find(lost, folder)
            conditions: Mapping[str, Condition] = cluster.conditions(list(handles.values())) if handles else {}
        except UserError as error:
            silent[name] = str(error)
            continue
        found |= {one: conditions[handle] for one, handle in handles.items() if handle in conditions}
        found |= {task.id: _NEVER_THERE for task in lost if task.id not in handles}
        if handles and not conditions:
            silent[name] = f"{name} does not answer"
    return found, silent


def _at_work(
    ledger: Ledger,
    alive: Sequence[Submitted],
    wanted: Collection[str],
    cluster: Cluster | None,
    silent: Mapping[str, str],
) -> UserError:
    name = alive[0].cluster
    count = sum(job in wanted for task in alive for job in task.jobs)
    handles = [task.handle for task in alive if task.handle]
    where = f"on {name}" + (f" as {from_to(handles)}" if handles else "")
    why = f" ({silent[name]})" if name in silent else ""
    kind = name.split()[0]
    again = f"executor={kind}" if cluster is None or cluster.name != name else "the same jobs as in the earlier command"
    return UserError(
        str(ledger.folder),
        f"{count} of these jobs {'is' if count == 1 else 'are'} {where}{why}",
        f"{again} to follow them, or tl cancel {ledger.folder} to end them",
    )
