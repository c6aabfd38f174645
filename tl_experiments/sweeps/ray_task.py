"""What runs in the processes of a Ray cluster. Ray itself is imported only there."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tl_experiments.errors import first_line
from tl_experiments.records import SWEEP_FILE
from tl_experiments.sweeps.remote import work_remotely
from tl_experiments.sweeps.tasks import Task
from tl_experiments.training.ending import OUT_OF_MEMORY_HINT

CANCELLED = signal.SIGUSR1  # asks a task to end for good; after any other signal it is to go on elsewhere
_SHOW_S = 30.0  # that a sweep's folder may take to show on another machine
_FAREWELL_S = 60.0  # that Ray may take to end an actor


class RayTask:
    """A detached actor whose creation is the work, so that Ray starts it again after its process or its node died,
    also when the command that submitted it is gone. Its methods are never called.

    Args:
        task: As it was submitted.
        folder: Of the sweep.
        threads: Of torch.
        handle: The actor's name.
        cwd: Of the command: paths in a config may be relative to it.
    """

    def __init__(self, task: Task, folder: Path, threads: int, handle: str, cwd: str) -> None:
        _wait_for(folder)
        if os.path.isdir(cwd):
            os.chdir(cwd)
        try:
            signum = work_remotely(task, folder, threads, handle)
        except SystemExit as error:  # another turn would end alike
            raise RuntimeError(f"the job called exit({error.code}) before it was done") from None
        if signum is not None and signum != CANCELLED:
            os._exit(1)  # Ray starts it again, as after a kill
        _leave()


@dataclass(frozen=True)
class Actor:
    """What a cluster knows of an actor.

    Args:
        state: Ray's word for it; ``PENDING_CREATION`` and ``RESTARTING`` stand for tasks that run as well.
        pid: Of its process; 0 before it has one.
        node: Id of its node.
        restarts: How often it was started again.
        death: Why it is dead, in a few words.
        hint: What may help against that.
        outside: Whether a person or a lost node ended it.
    """

    state: str
    pid: int
    node: str
    restarts: int
    death: str = ""
    hint: str = ""
    outside: bool = False

    @property
    def runs(self) -> bool:
        """Whether it has a process."""
        return self.state != "DEAD" and self.pid > 0


def actors(names: Set[str]) -> dict[str, Actor]:
    """What the cluster knows of the actors of these names, those that have ended included."""
    from ray._private import state  # ray.util.state needs the dashboard

    return {row["Name"]: _actor(row) for row in state.actors().values() if row["Name"] in names}


def _actor(row: dict[str, Any]) -> Actor:
    alive = Actor(row["State"], row["Pid"], row["Address"]["NodeID"], row["NumRestarts"])
    cause = row["DeathCause"]
    match kind := cause.WhichOneof("context") if cause else None:
        case None:
            return alive
        case "creation_task_failure_context":
            lines = cause.creation_task_failure_context.formatted_exception_string.strip().splitlines()
            return replace(alive, death=lines[-1] if lines else "could not be started")
        case "actor_died_error_context":
            context = cause.actor_died_error_context
            match context.Reason.Name(context.reason):
                case "WORKER_DIED":
                    return replace(alive, death="killed", hint=f": out of memory? {OUT_OF_MEMORY_HINT}")
                case "NODE_DIED":
                    return replace(alive, death="killed with its node", outside=True)
                case "RAY_KILL":
                    return replace(alive, death="cancelled", outside=True)
    return replace(alive, death=first_line(Exception(getattr(cause, kind).error_message)))


def may_grow() -> bool:
    """Whether the cluster starts nodes as it needs them."""
    from ray._private import state

    return bool(state.state.get_max_resources_from_cluster_config())


def end_process(pid: int) -> bool:
    """Ask the task in process ``pid`` of this node to end for good; False where there is none any more."""
    import psutil  # type: ignore[import-untyped]  # part of Ray, which has been imported where this is called

    try:
        title = " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return False
    if RayTask.__name__ not in title:
        return False
    os.kill(pid, CANCELLED)
    return True


def _wait_for(folder: Path) -> None:
    """Another machine may not see the folder, or later."""
    deadline = time.monotonic() + _SHOW_S
    while not (folder / SWEEP_FILE).is_file():
        if time.monotonic() > deadline:
            raise FileNotFoundError(f"{folder} does not show on {platform.node()}: give output_dir= on a shared disk")
        time.sleep(1.0)


def _leave() -> None:
    """End this actor without another turn; it could not by ``exit`` while it is being created."""
    import ray

    ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
    time.sleep(_FAREWELL_S)
    os._exit(1)
