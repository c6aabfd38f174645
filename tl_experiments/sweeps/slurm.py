"""``executor=slurm``: tasks as jobs of SLURM, submitted by submitit, in arrays where they ask for the same."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from tl_experiments.config.executors import SlurmExecutor
from tl_experiments.config.trainers import Trainer
from tl_experiments.errors import UserError
from tl_experiments.sweeps import slurm_submission
from tl_experiments.sweeps.cluster import Condition
from tl_experiments.sweeps.journal import CLUSTER_FOLDER
from tl_experiments.sweeps.ledger import Submitted
from tl_experiments.sweeps.slurm_options import Options, flags, sbatch_options
from tl_experiments.sweeps.slurm_queue import Queue, cancel, cluster_name, largest_array, run, said
from tl_experiments.sweeps.slurm_turn import Turn
from tl_experiments.sweeps.tasks import Task

SUBMITIT_FOLDER = f"{CLUSTER_FOLDER}/submitit"  # of a sweep: scripts, pickles, and what a job prints before its own log


class Slurm:
    """The cluster of which this machine is a login node.

    Args:
        executor: None where tasks are only looked at or ended.
    """

    outlives = True

    def __init__(self, executor: SlurmExecutor | None = None) -> None:
        self._executor = executor
        self._queue = Queue()

    @cached_property
    def name(self) -> str:
        """Which SLURM: numbers of jobs repeat between clusters."""
        return f"slurm {cluster_name()}"

    def submit(self, tasks: Sequence[Task], folder: Path, threads: int, token: str) -> list[str]:
        """Hand over the tasks: an array for all that ask for the same, cut where SLURM allows no larger one."""
        assert self._executor is not None, "opened without a config"
        alike: dict[str, list[int]] = defaultdict(list)
        asked = [sbatch_options(self._executor, task.jobs[0].config.trainer, folder.name) for task in tasks]
        for position, options in enumerate(asked):
            alike[repr(options)].append(position)
        most = largest_array()
        handles: dict[int, str] = {}
        n_arrays = 0
        try:
            for positions in alike.values():
                for begin in range(0, len(positions), most):
                    part = positions[begin : begin + most]
                    array = [tasks[position] for position in part]
                    name, n_arrays = f"{token}-{n_arrays}", n_arrays + 1
                    ids = _submit(array, folder, threads, self._executor, asked[part[0]], name)
                    handles.update(zip(part, ids, strict=True))
        except BaseException:
            cancel(handles.values())
            raise
        return [handles[position] for position in range(len(tasks))]

    def find(self, tasks: Sequence[Submitted], folder: Path) -> Mapping[str, str]:
        """Handles of tasks that are in the queue."""
        found = slurm_submission.find({task.token for task in tasks}, folder / SUBMITIT_FOLDER)
        return {task.id: found[task.id] for task in tasks if task.id in found}

    def conditions(self, handles: Sequence[str]) -> Mapping[str, Condition]:
        """How each stands."""
        return {
            handle: replace(how, log=f"{SUBMITIT_FOLDER}/{handle}_0_log.err") if how.state == "ended" else how
            for handle, how in self._queue.conditions(handles).items()
        }

    def cancel(self, handles: Sequence[str]) -> None:
        """End them, or take them from the queue."""
        cancel(handles)


def check(executor: SlurmExecutor, trainers: Sequence[Trainer]) -> None:
    """That SLURM would take jobs that train like that, as far as it can tell before; nothing is submitted.

    Raises:
        UserError: It, or submitit, is not there, or it refuses them.
    """
    for command in ("sbatch", "srun", "squeue"):
        if shutil.which(command) is None:
            raise UserError(
                "executor=slurm", f"{command} is not found here", "run it where jobs are submitted, or executor=local"
            )
    if find_spec("submitit") is None:
        raise UserError("executor=slurm", "submitit is missing", "pip install 'tl-experiments[slurm]'")
    for options in {
        repr(one): one for one in (sbatch_options(executor, trainer, "tl") for trainer in trainers)
    }.values():
        with _own_environment():
            tried = run("sbatch", "--test-only", *flags(options), "--wrap=true")
        # Nodes that are drained or down now are no reason against waiting for them; a real sbatch knows the difference
        if tried.returncode and "not available" not in (what := said(tried)):
            raise slurm_submission.refused(what)


def _submit(
    tasks: Sequence[Task], folder: Path, threads: int, executor: SlurmExecutor, options: Options, name: str
) -> list[str]:
    """Submit one array; returns the handles."""
    from submitit import SlurmExecutor as Submitit

    folder = folder.absolute()
    submitit = Submitit(folder / SUBMITIT_FOLDER, max_num_timeout=executor.max_requeues)
    submitit.update_parameters(
        time=executor.time_min,
        signal_delay_s=executor.signal_delay_s,
        array_parallelism=executor.max_parallel,
        setup=[*executor.setup, f"export OMP_NUM_THREADS={threads}"],
        # srun does not take the number of cores from sbatch since SLURM 22.05; one rank's death ends the others
        srun_args=[f"--cpus-per-task={executor.cpus_per_task}", "--kill-on-bad-exit=1"],
        wckey=None,
        additional_parameters=options,
    )
    turns = [Turn(task, folder, threads, executor.max_requeues, executor.time_min) for task in tasks]
    with _own_environment():
        return slurm_submission.submit(submitit, turns, name)


@contextmanager
def _own_environment() -> Iterator[None]:
    """Without what a surrounding job of SLURM tells its processes: sbatch would take it for options."""
    hidden = {}
    if "SLURM_JOB_ID" in os.environ:
        hidden = {
            key: value
            for key, value in os.environ.items()
            if key.startswith(("SLURM_", "SLURMD_", "SRUN_")) and key != "SLURM_CONF"
        }
    for key in hidden:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(hidden)
