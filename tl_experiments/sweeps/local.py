"""Jobs as processes of their own on this machine, forked from a server that has imported torch once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any

from tl_experiments.config.running import LocalExecutor, TrainerConfig
from tl_experiments.sweeps.jobs import Job
from tl_experiments.sweeps.worker import OUT_OF_MEMORY_HINT, work

_PRELOAD = ["torch", "torchvision", "timm", "pytorch_lightning", "torchmetrics", "tl_experiments.training.run"]
_MOST_JOBS_ON_A_CPU = 4  # each holds a model and its data in memory


@dataclass(frozen=True)
class Slots:
    """Where jobs run at once.

    Args:
        devices: One entry a concurrent job: the GPU to show it, or None for the CPU.
        threads: CPU threads a job; it fixes the last bits of a CPU result, so a resumed sweep keeps it.
    """

    devices: tuple[str | None, ...]
    threads: int


@dataclass
class _Running:
    job: Job
    process: Any
    report: connection.Connection
    device: str | None
    started: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class Ended:
    """How a job ended: a state of the ledger, a one-line cause unless it is ``ok``, and its seconds."""

    job: Job
    state: str
    cause: str | None
    seconds: float


def slots(executor: LocalExecutor, trainer: TrainerConfig, n_jobs: int, threads: int | None = None) -> Slots:
    """One job a GPU, or on a CPU one a core up to 4, unless the executor says otherwise.

    Args:
        executor: Explicit numbers win.
        trainer: ``accelerator=cpu`` leaves GPUs alone.
        n_jobs: No more slots than jobs.
        threads: Of an earlier run of the sweep, kept unless the executor says otherwise.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = executor.threads_per_job or threads
    gpus = [] if trainer.accelerator == "cpu" else visible_gpus()
    per_device = executor.jobs_per_device
    at_once = len(gpus) * (per_device or 1) or per_device or min(_MOST_JOBS_ON_A_CPU, max(1, cores // (threads or 1)))
    at_once = min(at_once, max(1, n_jobs))
    devices = tuple(gpus[index % len(gpus)] if gpus else None for index in range(at_once))
    return Slots(devices, threads or max(1, cores // at_once))


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


def run_jobs(
    jobs: Sequence[Job], folder_of: Callable[[Job], Path], where: Slots, started: Callable[[Job], None]
) -> Iterator[Ended]:
    """Run ``jobs``, as many at once as there are slots, and yield each as it ends. A job's death costs only itself.

    Closing the iterator, or an exception in its consumer, ends the jobs that still run.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    waiting, running, free = list(jobs), list[_Running](), list(where.devices)
    try:
        while waiting or running:
            while waiting and free:
                job = waiting.pop(0)
                running.append(_start(context, job, folder_of(job), free.pop(0), where.threads))
                started(job)
            ready = connection.wait([one.process.sentinel for one in running])
            for one in [one for one in running if one.process.sentinel in ready]:
                running.remove(one)
                free.append(one.device)
                yield _ended(one)
    finally:
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.join(5)
            one.process.kill()


def _start(context: Any, job: Job, folder: Path, device: str | None, threads: int) -> _Running:
    receiver, sender = context.Pipe(duplex=False)
    environment = {"CUDA_VISIBLE_DEVICES": device or "", "OMP_NUM_THREADS": str(threads)}
    process = context.Process(target=work, args=(job, folder, threads, environment, sender), name=f"job {job.id}")
    process.start()
    sender.close()
    return _Running(job, process, receiver, device)


def _ended(one: _Running) -> Ended:
    seconds = time.perf_counter() - one.started
    one.process.join()
    try:
        state, cause = one.report.recv() if one.report.poll() else (None, None)
    except EOFError:
        state, cause = None, None
    if state is None:
        state, cause = "failed", _cause_of_death(one.process.exitcode)
    return Ended(one.job, state, cause, seconds)


def _cause_of_death(code: int) -> str:
    if code >= 0:
        return f"the job called exit({code}) before it was done"
    known = {int(one): one.name for one in signal.Signals}
    name = known.get(-code, f"signal {-code}")
    hint = f": out of memory? {OUT_OF_MEMORY_HINT}" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"
