"""Tasks as processes of their own on this machine, forked from a server that has imported torch once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, forkserver, resource_tracker
from pathlib import Path
from typing import Any

from tl_experiments import interrupt
from tl_experiments.config.executors import LocalExecutor
from tl_experiments.config.trainers import Trainer
from tl_experiments.errors import ConfigError
from tl_experiments.sweeps.ranks import Processes
from tl_experiments.sweeps.reports import Listener, Reports
from tl_experiments.sweeps.tasks import Task
from tl_experiments.training.groups import group_key

_PROBES = ["torch", "torchvision", "timm", "tl_experiments.training.run"]
_ALONE = ["pytorch_lightning", "torchmetrics", "tl_experiments.training.alone"]
_GRACE_S = 30.0  # for a resume point after a signal
_LOOK_UP_S = 0.2  # between two looks whether there was one
_UNSAID = "ended before it was done"
_MOST_TASKS_ON_A_CPU = 4  # each holds a model and its data in memory


@dataclass(frozen=True)
class Slots:
    """Where tasks run at once.

    Args:
        devices: One entry a concurrent task: the GPUs to show it, such as ``0`` or ``0,1`` for a job on two, or None
            for the CPU.
        threads: CPU threads of each process; it fixes the last bits of a CPU result, so a resumed sweep keeps it.
    """

    devices: tuple[str | None, ...]
    threads: int


@dataclass
class _Running:
    """A task's processes, on a slot."""

    reports: Reports
    processes: Processes
    device: str | None

    def listen(self, listener: Listener) -> None:
        """Take what has been reported."""
        for message in self.processes.news():
            self.reports.take(message, listener)


def slots(executor: LocalExecutor, trainer: Trainer, n_tasks: int, threads: int | None = None) -> Slots:
    """One task a GPU, or a group of GPUs where a job has several, or on a CPU one a core up to 4, unless the executor
    says otherwise.

    Args:
        executor: Explicit numbers win.
        trainer: ``accelerator=cpu`` leaves GPUs alone.
        n_tasks: No more slots than tasks.
        threads: Of an earlier run of the sweep, kept unless the executor says otherwise.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = executor.threads_per_job or threads
    gpus = [] if trainer.accelerator == "cpu" else visible_gpus()
    per_device, n = executor.jobs_per_device, trainer.devices
    groups = [",".join(gpus[first : first + n]) for first in range(0, len(gpus) - n + 1, n)]
    if groups:
        at_once = len(groups) * (per_device or 1)
    else:
        at_once = per_device or min(_MOST_TASKS_ON_A_CPU, max(1, cores // (n * (threads or 1))))
    at_once = min(at_once, max(1, n_tasks))
    devices = tuple(groups[index % len(groups)] if groups else None for index in range(at_once))
    return Slots(devices, threads or max(1, cores // (n * at_once)))


def check_devices(trainers: Sequence[Trainer]) -> None:
    """That this machine has the devices of each.

    Raises:
        ConfigError: It is more than one machine, or more GPUs.
    """
    many = [trainer for trainer in trainers if trainer.name != "default"]
    for trainer in many:
        if trainer.num_nodes > 1:
            raise ConfigError(
                "trainer.num_nodes",
                f"{trainer.num_nodes}, but executor=local is one machine",
                "executor=slurm, or start the command on each node with torchrun",
            )
    for trainer in (one for one in many if one.accelerator != "cpu"):
        n = len(visible_gpus())
        if trainer.devices > n and (n or trainer.accelerator == "gpu"):
            raise ConfigError(
                "trainer.devices",
                f"{trainer.devices}, but this machine shows {n} GPU{'' if n == 1 else 's'}",
                "give fewer, or trainer.accelerator=cpu for processes on the CPU",
            )


def visible_gpus() -> list[str]:
    """The GPUs that jobs may use, as ``CUDA_VISIBLE_DEVICES`` names them; CUDA must not start in this process."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [device.strip() for device in given.split(",") if device.strip() and device.strip() != "-1"]
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return listing.stdout.split() if listing.returncode == 0 else []


def server(*, alone: bool) -> Any:
    """The multiprocessing context whose processes are forked from a server that has imported torch.

    Args:
        alone: Whether jobs need Lightning, which takes another second.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PROBES, *(_ALONE if alone else [])])
    # Ctrl-C reaches every process of a terminal, and would end the server in the middle of its imports
    resource_tracker.ensure_running()  # it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def job_environment(device: str | None, threads: int) -> dict[str, str]:
    """What a job's process must be told before it uses torch."""
    return {"CUDA_VISIBLE_DEVICES": device or "", "OMP_NUM_THREADS": str(threads)}


def run_tasks(tasks: Sequence[Task], folder: Path, where: Slots, listener: Listener) -> None:
    """Run ``tasks``, as many at once as there are slots. A job's death costs only itself: a task of several that dies
    is tried again in halves, down to single jobs; what its jobs reported before stays.

    Args:
        tasks: In the order in which they are started.
        folder: Of the sweep.
        where: What runs where.
        listener: Is told of everything; an exception in it ends the processes.

    Raises:
        Interrupted: A signal asked the command to end; the processes had 30 s for a resume point each. A second signal
            ends them at once.
    """
    context = server(alone=any(group_key(task.jobs[0].config) is None for task in tasks))
    waiting, running, free = list(tasks), list[_Running](), list(where.devices)
    try:
        with interrupt.postponed():
            while (waiting or running) and interrupt.requested() is None:
                while waiting and free:
                    task = waiting.pop(0)
                    running.append(_start(context, task, folder, free.pop(0), where.threads))
                    listener.started(task)
                _wait_for_news(running)
                for one in _ended(running, listener):
                    free.append(one.device)
                    waiting[:0] = one.reports.conclude(listener, _UNSAID)
            if interrupt.requested() is not None:
                _stop(running, listener)
        interrupt.check()
    finally:
        for one in running:
            one.processes.kill()


def _ended(running: list[_Running], listener: Listener) -> Iterator[_Running]:
    """Listen to all; those whose processes have ended are taken out."""
    for one in list(running):
        one.listen(listener)
        if one.processes.over:
            running.remove(one)
            yield one


def _stop(running: list[_Running], listener: Listener) -> None:
    """Ask the processes to end, and listen while they write their resume points."""
    for one in running:
        one.processes.ask_to_end()
    deadline = time.monotonic() + _GRACE_S
    while running and time.monotonic() < deadline:
        _wait_for_news(running)
        for one in _ended(running, listener):
            one.reports.abandon(listener)


def _start(context: Any, task: Task, folder: Path, device: str | None, threads: int) -> _Running:
    n = task.jobs[0].config.trainer.devices  # another job of the sweep may have more
    shown = None if device is None else ",".join(device.split(",")[:n])
    processes = Processes(context, task, folder, threads, job_environment(shown, threads))
    return _Running(Reports(task), processes, device)


def _wait_for_news(running: Sequence[_Running]) -> None:
    connection.wait([waitable for one in running for waitable in one.processes.waitables()], _LOOK_UP_S)
