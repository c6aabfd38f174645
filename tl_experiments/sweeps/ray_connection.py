"""The Ray cluster that this process is connected to: one that was there, or one started here for its time."""

from __future__ import annotations

import atexit
import logging
import math
import os
import secrets
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tl_experiments import interrupt
from tl_experiments.config.executors import RayExecutor
from tl_experiments.errors import ConfigError, UserError, first_line
from tl_experiments.sweeps.local import visible_gpus
from tl_experiments.sweeps.ray_resources import Offer
from tl_experiments.sweeps.ray_task import may_grow
from tl_experiments.user_paths import expanded

NAMESPACE = "tl_experiments"  # of our actors
_CONNECT_S = 5.0
_MAX_PATH = 40  # Ray puts its sockets up to 65 characters below its folder; the kernel takes 107
_OBJECT_STORE_BYTES = 100_000_000  # nothing large is sent


def import_ray() -> Any:
    """Ray, with settings that it reads from the environment.

    Raises:
        ConfigError: It is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what it will be anyway, without a warning
    try:
        import ray
    except ModuleNotFoundError:
        raise ConfigError("executor=ray", "Ray is not installed", "pip install 'tl-experiments[ray]'") from None
    return ray


def start(executor: RayExecutor) -> None:
    """Start a cluster on this machine and connect to it; it ends with this process, however that ends.

    Raises:
        UserError: It cannot be started.
    """
    temporary = temporary_folder(executor)
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:  # Ray would keep one in the home folder
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray = import_ray()
    if not _is_connected(ray, "local"):
        size = {"num_cpus": _cores(), "object_store_memory": _OBJECT_STORE_BYTES}
        _init(ray, "local", include_dashboard=False, _temp_dir=temporary, **size)
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        atexit.register(_end_session, ray, session)


def connect(address: str) -> str:
    """Connect to a cluster that is there.

    Args:
        address: ``host:port``, ``ray://host:port``, or ``auto`` for ``RAY_ADDRESS`` or the one of this machine.

    Returns:
        The address, by which another process finds it as well.

    Raises:
        UserError: It cannot be reached.
    """
    ray = import_ray()
    if address == "auto":
        try:
            address = str(ray._private.services.get_ray_address_from_environment("auto", None))
        except ConnectionError:
            raise _unreachable(address, "no Ray runs on this machine") from None
    try:
        _knock(address)
    except OSError as error:
        raise _unreachable(address, first_line(error)) from None
    if not _is_connected(ray, address):
        _init(ray, address)
    return address


def still_connected(address: str) -> bool:
    """Whether the cluster answers; else this process leaves it, before Ray ends a process whose cluster died.

    Args:
        address: As ``connect`` returned it; connects again where a cluster answers there again.
    """
    try:
        connect(address)
    except UserError:
        if (ray := import_ray()).is_initialized():
            ray.shutdown()
        return False
    return True


def _knock(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host, int(port)), _CONNECT_S).close()


def offer(executor: RayExecutor) -> Offer:
    """What the cluster of the config has; one that would be started here is not.

    Raises:
        UserError: It cannot be reached.
    """
    if executor.address is not None:
        return offer_of(f"ray {connect(executor.address)}")
    import_ray()
    temporary_folder(executor)
    return Offer("a cluster on this machine", ({"CPU": _cores(), "GPU": len(visible_gpus()), "memory": math.inf},))


def offer_of(where: str) -> Offer:
    """What the cluster has to which this process is connected."""
    ray = import_ray()
    return Offer(where, tuple(node["Resources"] for node in ray.nodes() if node["Alive"]), ask(may_grow))


def ask(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``function`` where the cluster's state is known: a client over ``ray://`` sends it there."""
    ray = import_ray()
    from ray.util.client import ray as client

    if not client.is_connected():
        return function(*arguments)
    return ray.get(ray.remote(function).options(num_cpus=0).remote(*arguments))


def temporary_folder(executor: RayExecutor) -> str | None:
    """Where a cluster that is started here keeps its files; None leaves that to Ray.

    Raises:
        ConfigError: Its name is too long.
    """
    if executor.temp_dir is None:
        return None
    folder = str(expanded(executor.temp_dir).resolve())
    length = len(os.fsencode(folder))
    if length > _MAX_PATH:
        raise ConfigError(
            "executor.temp_dir", f"{folder} has {length} bytes, expected {_MAX_PATH} at most for sockets", "shorten it"
        )
    return folder


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_connected_to: str | None = None


def _is_connected(ray: Any, address: str) -> bool:
    if ray.is_initialized() and _connected_to != address:
        ray.shutdown()
    return ray.is_initialized()


def _init(ray: Any, address: str, **options: Any) -> None:
    global _connected_to
    # what becomes of its processes is told by the actors' states, not between the lines of the command
    ray._private.worker.print_to_stdstream = lambda *_arguments, **_options: None
    logging.getLogger("ray.util.client.logsclient").addHandler(logging.NullHandler())
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address, namespace=NAMESPACE, **quiet, **options)
    except Exception as error:
        if address == "local":
            raise UserError(
                "executor=ray", f"Ray does not start here ({first_line(error)})", "see executor.temp_dir"
            ) from None
        raise _unreachable(address, first_line(error)) from None
    finally:
        interrupt.take_back()
    _connected_to = address


def _unreachable(address: str, why: str) -> UserError:
    return UserError("executor.address", f"{address} cannot be used ({why})", "give that of a cluster, or null")


def _end_session(ray: Any, folder: Path) -> None:
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
