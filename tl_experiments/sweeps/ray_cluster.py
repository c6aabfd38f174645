"""Tasks on a cluster of Ray, or on one that is started here for the time of the command (Moritz et al., 2018)."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tl_experiments
from tl_experiments import interrupt
from tl_experiments.config.executors import RayExecutor
from tl_experiments.errors import ConfigError, UserError, first_line
from tl_experiments.sweeps.cluster import Condition
from tl_experiments.sweeps.ray_task import Actor, RayTask, actors, end_process
from tl_experiments.sweeps.tasks import Task
from tl_experiments.user_paths import expanded

NAMESPACE = "tl_experiments"
_GRACE_S = 30.0  # for a resume point
_CONNECT_S = 5.0
_LOOK_S = 0.2  # between two looks whether a task has ended
_OBJECT_STORE_BYTES = 100_000_000  # nothing large is sent


class RayCluster:
    """A task is a detached actor of Ray; its handle is the actor's name."""

    def __init__(self, address: str, outlives: bool) -> None:
        self._address, self.outlives = address, outlives

    @property
    def name(self) -> str:
        return f"ray {self._address}"

    def submit(self, tasks: Sequence[Task], folder: Path, threads: int) -> list[str]:
        return [_submit(task, folder.resolve(), threads) for task in tasks]

    def conditions(self, handles: Sequence[str]) -> Mapping[str, Condition]:
        known = _look(handles)
        return {handle: _condition(known.get(handle)) for handle in handles}

    def cancel(self, handles: Sequence[str]) -> None:
        """Take them from the queue; those that run have 30 s for a resume point each."""
        known = _look(handles)
        left = {handle: actor for handle, actor in known.items() if actor.state != "DEAD"}
        try:
            for handle, actor in left.items():
                if not actor.pid:
                    _kill(handle)
            _end([actor for actor in left.values() if actor.pid])
            deadline = time.monotonic() + _GRACE_S
            while time.monotonic() < deadline and any(one.state != "DEAD" for one in _look(list(left)).values()):
                time.sleep(_LOOK_S)
        finally:
            for handle in left:
                _kill(handle)


def start(executor: RayExecutor) -> RayCluster:
    """The cluster of the config: one that is there, or one started here, which ends with this process.

    Raises:
        UserError: It cannot be reached, or Ray is not installed.
    """
    if executor.address is not None:
        return connect(executor.address)
    ray = _import_ray()
    if not ray.is_initialized():
        temporary = str(expanded(executor.temp_dir).resolve()) if executor.temp_dir else None
        _init(ray, address="local", include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES,
              num_cpus=len(os.sched_getaffinity(0)), _temp_dir=temporary)  # fmt: skip
        atexit.register(_end_session, ray, Path(ray._private.worker._global_node.get_session_dir_path()))
    return RayCluster(ray.get_runtime_context().gcs_address, outlives=False)


def connect(address: str) -> RayCluster:
    """A cluster that is there.

    Args:
        address: ``host:port``, ``ray://host:port``, or ``auto`` for the one of this machine.

    Raises:
        UserError: It cannot be reached, or Ray is not installed.
    """
    ray = _import_ray()
    if address == "auto":
        try:
            address = ray._private.services.get_ray_address_from_environment("auto", None)
        except ConnectionError:
            raise _unreachable(address, "no Ray runs on this machine") from None
    if not ray.is_initialized():
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), _CONNECT_S).close()
        except OSError as error:
            raise _unreachable(address, first_line(error)) from None
        _init(ray, address=address)
    return RayCluster(address, outlives=True)


def _import_ray() -> Any:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else a token is kept in the home folder
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as it will be, without a warning
    try:
        import ray
    except ModuleNotFoundError:
        raise ConfigError("executor=ray", "ray not installed", "pip install 'tl-experiments[ray]'") from None
    return ray


def _init(ray: Any, address: str, **options: Any) -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    # lost workers are told by the actors' states; here they would be told between the lines of the command
    ray._private.worker.print_to_stdstream = lambda *_args, **_kwargs: None
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:
        raise _unreachable(address, first_line(error)) from None
    finally:
        interrupt.take_back()


def _unreachable(address: str, why: str) -> UserError:
    return UserError("executor.address", f"{address} cannot be used ({why})", "give that of a cluster, or null")


def _end_session(ray: Any, folder: Path) -> None:
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def _submit(task: Task, folder: Path, threads: int) -> str:
    import ray

    executor = task.jobs[0].config.executor
    assert isinstance(executor, RayExecutor)
    handle = f"{folder.name}/{task.id}/{secrets.token_hex(4)}"
    gpus = _gpus(task)
    environment = {"PYTHONPATH": _python_path(), "OMP_NUM_THREADS": str(threads)}
    if not gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    ray.remote(RayTask).options(
        name=handle,
        namespace=NAMESPACE,
        lifetime="detached",
        num_cpus=executor.cpus_per_task,
        num_gpus=gpus,
        memory=executor.memory_gb and int(executor.memory_gb * 1e9),
        resources=executor.resources or None,
        max_restarts=executor.max_retries,
        runtime_env={"env_vars": environment},
    ).remote(task, folder, threads, handle, os.getcwd())
    return handle


def _gpus(task: Task) -> float:
    config = task.jobs[0].config
    assert isinstance(config.executor, RayExecutor)
    if config.executor.gpus_per_task is not None:
        return config.executor.gpus_per_task
    return 0 if config.trainer.accelerator == "cpu" else config.trainer.devices


def _python_path() -> str:
    """So that the cluster's processes import this same package, also from a checkout."""
    here = str(Path(tl_experiments.__file__).parents[1])
    return os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])


def _look(handles: Sequence[str]) -> dict[str, Actor]:
    return _there(actors, frozenset(handles))


def _there(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``function`` in a process that knows the cluster's state: a client over ``ray://`` does not."""
    import ray
    from ray.util.client import ray as client

    if client.is_connected():
        return ray.get(ray.remote(function).options(num_cpus=0).remote(*arguments))
    return function(*arguments)


def _condition(actor: Actor | None) -> Condition:
    if actor is None:
        return Condition("ended", "the cluster does not know it any more")
    if actor.state == "DEAD":
        retries = f" after {actor.restarts} {'retry' if actor.restarts == 1 else 'retries'}" if actor.restarts else ""
        return Condition("ended", "cancelled" if actor.killed else f"{actor.death}{retries}")
    return Condition("running") if actor.pid else Condition("waiting")


def _kill(handle: str) -> None:
    import ray

    try:
        actor = ray.get_actor(handle, namespace=NAMESPACE)
    except ValueError:  # it has ended
        return
    ray.kill(actor, no_restart=True)


def _end(running: Sequence[Actor]) -> None:
    """Ask them to write their resume points and end."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = []
    for actor in running:
        there = NodeAffinitySchedulingStrategy(actor.node, soft=False)
        end = ray.remote(end_process).options(num_cpus=0, scheduling_strategy=there)
        asked.append(end.remote(actor.pid))
    ray.wait(asked, num_returns=len(asked), timeout=_CONNECT_S) if asked else None
