"""What SLURM runs of a task: a turn, after which it may go back into the queue."""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tl_experiments.sweeps import remote, slurm_queue
from tl_experiments.sweeps.journal import Journal, journal_path
from tl_experiments.sweeps.tasks import Task


@dataclass(frozen=True)
class Turn:
    """Runs a task until it is done or told to end. submitit calls it, once on every rank.

    Signals are ours while the task runs. submitit's handler, which puts the job back into the queue, is called after
    the resume point has been written, and only for the signal that comes before the time limit. It asks ``checkpoint``
    for the next turn, in which the count of them is kept: submitit itself does not count signals that come early. A
    preempted job is put back by SLURM, unless it ends within the time of grace that some partitions give; so it is put
    back here, and not counted.

    Args:
        task: As it was submitted.
        folder: Of the sweep.
        threads: Of torch.
        turns_left: How many may follow because of the time limit.
        time_min: The limit.
    """

    task: Task
    folder: Path
    threads: int
    turns_left: int
    time_min: int

    def __call__(self) -> None:
        from submitit import JobEnvironment

        job = JobEnvironment()
        at_the_limit = signal.Signals[f"SIG{job.USR_SIG}"]
        requeue: Any = signal.getsignal(at_the_limit)
        signum = remote.work_remotely(self.task, self.folder, self.threads, f"SLURM job {job.job_id}")
        if signum is None:
            return
        for one in remote.SIGNALS:  # SLURM ends what is left of this turn
            signal.signal(one, signal.SIG_IGN)
        if job.global_rank > 0:
            return
        if signum == at_the_limit and self.turns_left > 0:
            requeue(at_the_limit, None)
        elif signum == at_the_limit:
            self._give_up()
        elif slurm_queue.is_preempted(job.job_id):
            slurm_queue.put_back(job.job_id)

    def checkpoint(self) -> Any:
        """What submitit submits for the next turn."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(replace(self, turns_left=self.turns_left - 1))

    def _give_up(self) -> None:
        cause = (
            f"reached executor.time_min={self.time_min} in each turn that executor.max_requeues allows; "
            "run it again, it goes on from its resume point"
        )
        Journal(journal_path(self.folder, self.task.id), {}).send(("left", "interrupted", cause, True))
