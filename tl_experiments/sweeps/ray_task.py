"""What runs in the processes of a Ray cluster. Ray itself is imported only there."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import time
from collections.abc import Set
from dataclasses import dataclass
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
        state: Ray's word for it, such as ``PENDING_CREATION``, which stands for a task that runs as well.
        pid: Of its process; 0 before it has one.
        node: Id of its node.
        restarts: How often it was started again.
        death: Why it is dead, in one line.
        killed: Whether it was ended by ``ray.kill``.
    """

    state: str
    pid: int
    node: str
    restarts: int
    death: str
    killed: bool


def actors(names: Set[str]) -> dict[str, Actor]:
    """What the cluster knows of the actors of these names, those that have ended included."""
    from ray._private import state  # ray.util.state needs the dashboard

    return {row["Name"]: _actor(row) for row in state.actors().values() if row["Name"] in names}


def _actor(row: dict[str, Any]) -> Actor:
    cause = row["DeathCause"]
    context = cause.WhichOneof("context") if cause else None
    if context is None:
        death = ""
    elif context == "creation_task_failure_context":
        raised = cause.creation_task_failure_context.formatted_exception_string.strip()
        death = raised.splitlines()[-1] if raised else "could not be started"
    else:
        death = first_line(Exception(getattr(cause, context).error_message))
    reason = cause.actor_died_error_context if context == "actor_died_error_context" else None
    killed = reason is not None and reason.reason == reason.Reason.Value("RAY_KILL")
    if reason is not None and reason.reason == reason.Reason.Value("WORKER_DIED"):
        death = f"killed: out of memory? {OUT_OF_MEMORY_HINT}"
    elif reason is not None and reason.reason == reason.Reason.Value("NODE_DIED"):
        death = "killed with its node"
    return Actor(row["State"], row["Pid"], row["Address"]["NodeID"], row["NumRestarts"], death, killed)


def end_process(pid: int) -> None:
    """Ask the task in process ``pid`` of this node to end for good, unless the number is another process's by now."""
    shown = subprocess.run(["ps", "-ww", "-p", str(pid), "-o", "command="], capture_output=True, text=True, check=False)
    if RayTask.__name__ in shown.stdout:
        os.kill(pid, CANCELLED)


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
