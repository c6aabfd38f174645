"""The choice of ``executor``: what runs at once, and who runs it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tl_experiments.config.executors import Executor, LocalExecutor, RayExecutor, SlurmExecutor
from tl_experiments.config.trainers import Trainer
from tl_experiments.errors import UserError
from tl_experiments.sweeps import ray_cluster, slurm
from tl_experiments.sweeps.cluster import Cluster, run_on_cluster
from tl_experiments.sweeps.jobs import Job
from tl_experiments.sweeps.local import Slots, check_devices, run_tasks, slots
from tl_experiments.sweeps.ray_cluster import RayCluster
from tl_experiments.sweeps.ray_connection import connect
from tl_experiments.sweeps.reports import Listener
from tl_experiments.sweeps.slurm import Slurm
from tl_experiments.sweeps.tasks import Task


def places(executor: Executor, trainer: Trainer, n_tasks: int, threads: int | None) -> Slots:
    """Where so many tasks run at once.

    Args:
        executor: Of the sweep.
        trainer: Likewise; ``accelerator=cpu`` leaves GPUs alone.
        n_tasks: No more slots than tasks.
        threads: Of an earlier run of the sweep, kept on this machine unless the executor says otherwise.
    """
    if isinstance(executor, LocalExecutor):
        return slots(executor, trainer, n_tasks, threads)
    if isinstance(executor, SlurmExecutor):
        most, on_gpu = executor.max_parallel, trainer.accelerator != "cpu"
    else:
        most, on_gpu = ray_cluster.places(executor, trainer)
    return Slots(("gpu" if on_gpu else None,) * max(1, min(n_tasks, most)), executor.threads_per_job)


def check_executor(jobs: Sequence[Job]) -> None:
    """That the executor of ``jobs``, which they share, would take them.

    Raises:
        UserError: It is not there, or it refuses them.
    """
    if not jobs:
        return
    executor, trainers = jobs[0].config.executor, [job.config.trainer for job in jobs]
    if isinstance(executor, LocalExecutor):
        check_devices(trainers)
    elif isinstance(executor, SlurmExecutor):
        slurm.check(executor, trainers)
    else:
        ray_cluster.check(executor, trainers)


def opened(executor: Executor) -> Cluster | None:
    """The cluster of an executor; None for this machine.

    Raises:
        UserError: It cannot be reached from here.
    """
    return None if isinstance(executor, LocalExecutor) else _open(executor)


def execute(
    tasks: Sequence[Task],
    folder: Path,
    where: Slots,
    executor: Executor,
    cluster: Cluster | None,
    known: Mapping[str, str],
    listener: Listener,
) -> None:
    """Run ``tasks`` where the executor says.

    Args:
        tasks: In the order in which they are started.
        folder: Of the sweep.
        where: From ``places``.
        executor: Of the sweep.
        cluster: From ``opened``.
        known: Task id -> handle, of those that are on a cluster already.
        listener: Is told of everything.

    Raises:
        Interrupted: A signal asked the command to end.
        UserError: The executor cannot take them.
    """
    if isinstance(executor, LocalExecutor):
        run_tasks(tasks, folder, where, listener)
    else:
        assert cluster is not None
        run_on_cluster(tasks, folder, where.threads, cluster, known, executor.poll_s, listener)


def cluster_of(name: str) -> Cluster:
    """A cluster by the name that the ledger keeps, to look at its tasks or to end them.

    Raises:
        UserError: It cannot be reached from here.
    """
    if name.partition(" ")[0] == "slurm":
        if shutil.which("squeue") is None:
            raise UserError(name, "squeue is not found here", "go where jobs are submitted")
        slurm_here = Slurm()
        if slurm_here.name != name:
            raise UserError(name, f"squeue asks {slurm_here.name} here", "go where its jobs are submitted")
        return slurm_here
    if name == "ray":
        raise UserError(name, "was started by the command and ends with it", "end the command, or run it again")
    if name.startswith("ray "):
        return RayCluster(connect(name.removeprefix("ray ")))
    raise UserError(name, "no such cluster", "choose slurm or ray")


def _open(executor: SlurmExecutor | RayExecutor) -> Cluster:
    return Slurm(executor) if isinstance(executor, SlurmExecutor) else ray_cluster.open_ray(executor)
