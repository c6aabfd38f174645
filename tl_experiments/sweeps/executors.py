"""The choice of ``executor``: what runs at once, and who runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tl_experiments.config.executors import Executor, LocalExecutor, RayExecutor, SlurmExecutor
from tl_experiments.config.trainers import TrainerConfig
from tl_experiments.errors import UserError
from tl_experiments.sweeps.cluster import Cluster, run_on_cluster
from tl_experiments.sweeps.local import Slots, run_tasks, slots
from tl_experiments.sweeps.reports import Listener
from tl_experiments.sweeps.tasks import Task


def places(executor: Executor, trainer: TrainerConfig, n_tasks: int, threads: int | None) -> Slots:
    """Where so many tasks run at once.

    Args:
        executor: Of the sweep.
        trainer: Likewise; ``accelerator=cpu`` leaves GPUs alone.
        n_tasks: No more slots than tasks.
        threads: Of an earlier run of the sweep, kept on this machine unless the executor says otherwise.
    """
    if isinstance(executor, LocalExecutor):
        return slots(executor, trainer, n_tasks, threads)
    most = executor.max_parallel if isinstance(executor, SlurmExecutor) else n_tasks
    device = None if trainer.accelerator == "cpu" else "gpu"
    return Slots((device,) * max(1, min(n_tasks, most)), executor.threads_per_job)


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
    raise UserError(name, "no such cluster", "choose slurm or ray")


def _open(executor: SlurmExecutor | RayExecutor) -> Cluster:
    raise UserError("executor", executor.name, "choose local")
