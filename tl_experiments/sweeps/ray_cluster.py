"""Tasks on a cluster of Ray (Moritz et al., 2018), each a detached actor."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tl_experiments
from tl_experiments.config.executors import RayExecutor
from tl_experiments.config.trainers import Trainer
from tl_experiments.sweeps.cluster import Condition
from tl_experiments.sweeps.ledger import Submitted
from tl_experiments.sweeps.ray_connection import (
    NAMESPACE,
    ask,
    connect,
    import_ray,
    offer,
    offer_of,
    start,
    still_connected,
)
from tl_experiments.sweeps.ray_resources import Amounts, check_demand, demand
from tl_experiments.sweeps.ray_task import Actor, RayTask, actors, end_process
from tl_experiments.sweeps.tasks import Task

logger = logging.getLogger(__name__)

_GRACE_S = 30.0  # for a resume point
_LOOK_S = 0.2  # between two looks whether a task has ended


class RayCluster:
    """Actors that wait for what they ask for are Ray's queue. A handle is an actor's name.

    Args:
        address: Of a cluster; None for the one that this process has started.
    """

    def __init__(self, address: str | None) -> None:
        self.outlives = address is not None
        self.name = f"ray {address}" if address else "ray"
        self._address, self._silent = address, False

    def submit(self, tasks: Sequence[Task], folder: Path, threads: int, token: str) -> list[str]:
        self._connect()
        there, wanted = offer_of(self.name), list[Amounts]()
        for task in tasks:
            wanted.append(demand(_executor(task), task.jobs[0].config.trainer, there))
            check_demand(wanted[-1], there)
        return [_submit(*one, folder.resolve(), threads, token) for one in zip(tasks, wanted, strict=True)]

    def find(self, tasks: Sequence[Submitted], folder: Path) -> Mapping[str, str]:
        self._connect()
        handles = {task.id: _handle(folder.resolve(), task.id, task.token) for task in tasks}
        known = _look(list(handles.values()))
        return {one: handle for one, handle in handles.items() if handle in known and known[handle].state != "DEAD"}

    def conditions(self, handles: Sequence[str]) -> Mapping[str, Condition]:
        """Empty while the cluster does not answer, which is told once."""
        if self._address is not None and not still_connected(self._address):
            if not self._silent:
                logger.warning("%s does not answer: tasks are followed again when it does", self.name)
            self._silent = True
            return {}
        self._silent = False
        known = _look(handles)
        return {handle: _condition(known.get(handle)) for handle in handles}

    def cancel(self, handles: Sequence[str]) -> None:
        """Take them from the queue; those that run have 30 s for a resume point each."""
        self._connect()
        left = {handle: actor for handle, actor in _look(handles).items() if actor.state != "DEAD"}
        try:
            for handle in left.keys() - self._asked_to_end({one: actor for one, actor in left.items() if actor.runs}):
                _kill(handle)
            deadline = time.monotonic() + _GRACE_S
            while time.monotonic() < deadline and any(one.state != "DEAD" for one in _look(list(left)).values()):
                time.sleep(_LOOK_S)
        finally:
            for handle in left:
                _kill(handle)

    def _connect(self) -> None:
        """Again, if the cluster was away for a while."""
        if self._address is not None:
            connect(self._address)

    def _asked_to_end(self, running: Mapping[str, Actor]) -> set[str]:
        """Ask them to write their resume points; returns those that could be asked. One that is about to be started
        again cannot."""
        if not self.outlives:
            return {handle for handle, actor in running.items() if end_process(actor.pid)}
        ray = import_ray()
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        answers = {}
        for handle, actor in running.items():
            there = NodeAffinitySchedulingStrategy(actor.node, soft=False)
            function = ray.remote(end_process).options(num_cpus=0, scheduling_strategy=there)
            answers[function.remote(actor.pid)] = handle
        ready, _ = ray.wait(list(answers), num_returns=len(answers), timeout=_GRACE_S) if answers else ([], [])
        return {answers[one] for one in ready if _succeeded(one)}


def open_ray(executor: RayExecutor) -> RayCluster:
    """The cluster of the config: one that is there, or one started here, which ends with this process.

    Raises:
        UserError: It cannot be used, or Ray is not installed.
    """
    if executor.address is not None:
        return RayCluster(connect(executor.address))
    start(executor)
    return RayCluster(None)


def check(executor: RayExecutor, trainers: Iterable[Trainer]) -> None:
    """That the cluster of the config would take tasks that train like that.

    Raises:
        UserError: It cannot be used, Ray is not installed, or no node has what a task asks for.
    """
    there = offer(executor)
    for wanted in {repr(one): one for one in (demand(executor, trainer, there) for trainer in trainers)}.values():
        check_demand(wanted, there)


def places(executor: RayExecutor, trainer: Trainer) -> tuple[int, bool]:
    """How many tasks the cluster of the config takes at once, were it empty, and whether each has a GPU."""
    there = offer(executor)
    wanted = demand(executor, trainer, there)
    return max(1, there.at_once(wanted)), "GPU" in wanted


def _handle(folder: Path, task_id: str, token: str) -> str:
    return f"{folder.name}/{task_id}/{token}"


def _submit(task: Task, wanted: Amounts, folder: Path, threads: int, token: str) -> str:
    executor = _executor(task)
    handle = _handle(folder, task.id, token)
    environment = {"PYTHONPATH": _python_path(), "OMP_NUM_THREADS": str(threads)}
    if "GPU" not in wanted:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    options = {
        "name": handle,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "num_cpus": wanted["CPU"],
        "num_gpus": wanted.get("GPU", 0),
        "memory": int(wanted["memory"]) if "memory" in wanted else None,
        "resources": executor.resources or None,
        "max_restarts": executor.max_retries,
        "runtime_env": {"env_vars": environment},
    }
    import_ray().remote(RayTask).options(**options).remote(task, folder, threads, handle, os.getcwd())
    return handle


def _executor(task: Task) -> RayExecutor:
    executor = task.jobs[0].config.executor
    assert isinstance(executor, RayExecutor)
    return executor


def _python_path() -> str:
    """So that the cluster's processes import this same package, also from a checkout."""
    here = str(Path(tl_experiments.__file__).parents[1])
    return os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])


def _look(handles: Sequence[str]) -> dict[str, Actor]:
    found: dict[str, Actor] = ask(actors, frozenset(handles))
    return found


def _condition(actor: Actor | None) -> Condition:
    if actor is None:
        return Condition("ended", "the cluster does not know it any more", outside=True)
    if actor.state != "DEAD":
        return Condition("running" if actor.runs else "waiting")
    retries = f" after {actor.restarts} {'retry' if actor.restarts == 1 else 'retries'}" if actor.restarts else ""
    return Condition("ended", f"{actor.death}{retries}{actor.hint}", outside=actor.outside)


def _kill(handle: str) -> None:
    ray = import_ray()
    try:
        actor = ray.get_actor(handle, namespace=NAMESPACE)
    except ValueError:  # it has ended
        return
    ray.kill(actor, no_restart=True)


def _succeeded(answer: Any) -> bool:
    ray = import_ray()
    try:
        return bool(ray.get(answer))
    except ray.exceptions.RayError:  # its node is gone
        return False
