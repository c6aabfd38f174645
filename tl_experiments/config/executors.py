"""Choices of the group ``executor``: where the jobs of a sweep run. None of it changes a result."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from tl_experiments.config.ranges import require
from tl_experiments.errors import ConfigError

# Options of sbatch, and the keys that set them
_SET_BY = {
    "account": "executor.account",
    "array": "executor.max_parallel",
    "constraint": "executor.constraint",
    "cpus-per-task": "executor.cpus_per_task",
    "gpus-per-node": "executor.gpus_per_node",
    "mem": "executor.memory_gb",
    "nodes": "trainer.num_nodes",
    "ntasks-per-node": "trainer.devices",
    "partition": "executor.partition",
    "qos": "executor.qos",
    "signal": "executor.signal_delay_s",
    "time": "executor.time_min",
}


@dataclass(frozen=True, kw_only=True)
class LocalExecutor:
    """Jobs of a sweep as processes of their own on this machine.

    Args:
        jobs_per_device: Jobs at once on each GPU, or on the CPU; null is one a GPU, or on a CPU one a core up to 4.
        threads_per_job: CPU threads a job; null shares the cores evenly. Part of what fixes a CPU result's last bits.
    """

    name: Literal["local"]
    jobs_per_device: int | None
    threads_per_job: int | None

    def __post_init__(self) -> None:
        jobs = self.jobs_per_device
        require(jobs is None or jobs > 0, "jobs_per_device", jobs, "1 or more")
        threads = self.threads_per_job
        require(threads is None or threads > 0, "threads_per_job", threads, "1 or more")


@dataclass(frozen=True, kw_only=True)
class SlurmExecutor:
    """Each task of a sweep as a job of SLURM, in arrays where they are alike. All nodes see ``output_dir``.

    Args:
        partition: ``--partition``; null is the cluster's own.
        account: ``--account``.
        qos: ``--qos``.
        constraint: ``--constraint``, such as ``a100|h100``.
        gpus_per_node: GPUs of a job on each of its nodes; null is one a device of the trainer, and none with
            ``trainer.accelerator=cpu``.
        cpus_per_task: Cores, and CPU threads, of each process.
        memory_gb: Of each node; null is the cluster's own.
        time_min: Limit of a job in minutes. One that does not end in time goes on in the next turn from its resume
            point.
        signal_delay_s: Seconds before the limit at which a job is told to write its resume point.
        max_requeues: Turns after the first that a job may take because of its limit.
        max_parallel: Jobs of an array at once.
        setup: Lines of shell before a job starts, such as ``module load cuda``.
        options: Further options of sbatch, by their long names; ``true`` for one that takes no value.
        poll_s: Seconds between two looks at the queue.
    """

    name: Literal["slurm"]
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    gpus_per_node: int | None
    cpus_per_task: int
    memory_gb: float | None
    time_min: int
    signal_delay_s: int
    max_requeues: int
    max_parallel: int
    setup: tuple[str, ...]
    options: dict[str, str | bool]
    poll_s: float
    jobs_per_device: ClassVar[None] = None

    def __post_init__(self) -> None:
        gpus, memory = self.gpus_per_node, self.memory_gb
        require(gpus is None or gpus >= 0, "gpus_per_node", gpus, "0 or more, or null")
        require(memory is None or memory > 0, "memory_gb", memory, "a number above 0, or null")
        for key in ("cpus_per_task", "time_min", "max_parallel"):
            require(getattr(self, key) > 0, key, getattr(self, key), "1 or more")
        for key in ("signal_delay_s", "max_requeues"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")
        delay, limit = self.signal_delay_s, 60 * self.time_min
        require(delay < limit, "signal_delay_s", delay, f"less than the {limit} s of time_min")
        require(self.poll_s > 0, "poll_s", self.poll_s, "a number above 0")
        for option in self.options:
            if option == "clusters":
                fix = "submit on a machine of that cluster"
                raise ConfigError("options.clusters", "jobs of another cluster cannot be followed from here", fix)
            if (own := _SET_BY.get(option.replace("_", "-"))) is not None:
                raise ConfigError(f"options.{option}", "is an option that has a key of its own", f"give {own}=")

    @property
    def threads_per_job(self) -> int:
        """CPU threads of a process."""
        return self.cpus_per_task


@dataclass(frozen=True, kw_only=True)
class RayExecutor:
    """Each task of a sweep on a cluster of Ray. All nodes see ``output_dir``.

    Args:
        address: Of a cluster, ``host:port`` or ``ray://host:port``; ``auto`` finds that of ``RAY_ADDRESS`` or of this
            machine; null starts one on this machine, which ends with the command.
        gpus_per_task: GPUs of a task, a fraction where several share one, whose memory Ray does not divide; null is one
            a device of the trainer. With ``trainer.accelerator=cpu``, or ``auto`` and no GPU in the cluster, none.
        cpus_per_task: Cores, and CPU threads, of each process of a task, one a device of the trainer.
        memory_gb: That a task asks for; null asks for none.
        resources: Of a task, by the names that the cluster gives them.
        max_retries: How often a task whose process or node died is started again; it goes on from its resume point.
        temp_dir: Where a cluster that is started here keeps its files; null is the system's folder for such.
        poll_s: Seconds between two looks at the tasks.
    """

    name: Literal["ray"]
    address: str | None
    gpus_per_task: float | None
    cpus_per_task: int
    memory_gb: float | None
    resources: dict[str, float]
    max_retries: int
    temp_dir: str | None
    poll_s: float

    def __post_init__(self) -> None:
        gpus, memory = self.gpus_per_task, self.memory_gb
        require(
            gpus is None or 0 <= gpus < 1 or gpus == int(gpus), "gpus_per_task", gpus, "a fraction, or a whole number"
        )
        require(memory is None or memory > 0, "memory_gb", memory, "a number above 0, or null")
        address = self.address
        known = address in (None, "auto") or re.fullmatch(r"(ray://)?[^/\s]+:\d+", address)
        require(bool(known), "address", address, "host:port, ray://host:port, auto or null")
        require(self.cpus_per_task > 0, "cpus_per_task", self.cpus_per_task, "1 or more")
        require(self.max_retries >= 0, "max_retries", self.max_retries, "0 or more")
        require(self.poll_s > 0, "poll_s", self.poll_s, "a number above 0")

    @property
    def jobs_per_device(self) -> int | None:
        """Tasks that share a GPU."""
        gpus = self.gpus_per_task
        return int(1 / gpus) if gpus is not None and 0 < gpus < 1 else None

    @property
    def threads_per_job(self) -> int:
        """CPU threads of a task."""
        return self.cpus_per_task


Executor = LocalExecutor | SlurmExecutor | RayExecutor
