"""What a task asks of SLURM, as options of sbatch."""

from __future__ import annotations

from tl_experiments.config.executors import SlurmExecutor
from tl_experiments.config.trainers import Trainer

Options = dict[str, str | int | bool]


def sbatch_options(executor: SlurmExecutor, trainer: Trainer, name: str) -> Options:
    """Long options of sbatch, with underscores, for a job that trains as ``trainer`` says; True stands for a flag.

    Args:
        executor: ``options`` come last.
        trainer: A process a device, on each of its nodes.
        name: To show in the queue.
    """
    gpus = executor.gpus_per_node
    if gpus is None:
        gpus = 0 if trainer.accelerator == "cpu" else trainer.devices
    given: dict[str, str | int | None] = {
        "job_name": name,
        "partition": executor.partition,
        "account": executor.account,
        "qos": executor.qos,
        "constraint": executor.constraint,
        "nodes": trainer.num_nodes,
        "ntasks_per_node": trainer.devices,
        "cpus_per_task": executor.cpus_per_task,
        "gpus_per_node": gpus or None,
        "mem": None if executor.memory_gb is None else f"{round(executor.memory_gb * 1024)}M",
        "time": executor.time_min,
    }
    further = {key.replace("-", "_"): value for key, value in executor.options.items()}
    return {
        **{key: value for key, value in given.items() if value is not None},
        "requeue": True,  # after a lost node, or when a job of more importance needs it
        **{key: value for key, value in further.items() if value is not False},
    }


def flags(options: Options) -> list[str]:
    """As words of a command line."""
    return [f"--{_long(key)}" if value is True else f"--{_long(key)}={value}" for key, value in options.items()]


def _long(key: str) -> str:
    return key.replace("_", "-")
