"""The jobs of one task, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tl_experiments.config.schema import TrainConfig
from tl_experiments.errors import UserError
from tl_experiments.records import RunRecord
from tl_experiments.training.ending import how_it_ended
from tl_experiments.training.groups import Judge, SharedWork, group_key, unjudged
from tl_experiments.training.probe import Progress
from tl_experiments.training.probing import train_probes
from tl_experiments.training.run import run

Ended = Callable[[int, str, str | None, float], None]


def unwatched(_position: int, _done: int, _total: int) -> None:
    """Nobody looks at the progress."""


def run_together(
    jobs: Sequence[tuple[TrainConfig, Path]],
    shared: SharedWork,
    ended: Ended,
    done: frozenset[int] = frozenset(),
    progress: Progress = unwatched,
    judge: Judge = unjudged,
) -> None:
    """Train the jobs of one task.

    Args:
        jobs: Configs with equal ``group_key``, or one; each with its folder.
        shared: What the task may do for others.
        ended: ``ended(position, state, cause, seconds)``, called as each job ends; one that a user can mend, or that
            diverged, costs only itself.
        done: Positions that have ended in an earlier attempt: they take part where that fixes the others' last bits,
            and nothing is written or called for them.
        progress: ``progress(position, done, total)``, steps of the job's training; may be called at every step.
        judge: Of a job that is trained alone; see ``run``.

    Raises:
        Exception: Whatever ends the whole task: the jobs that have not ended can be tried again in smaller tasks,
            unless it is a UserError.
    """
    started = time.perf_counter()
    if group_key(jobs[0][0]) is not None:
        for position, result in train_probes(jobs, shared, done, progress):
            state, cause = ("ok", None) if isinstance(result, RunRecord) else how_it_ended(result)
            ended(position, state, cause, (time.perf_counter() - started) / len(jobs))
        return
    ((config, folder),) = jobs  # only heads on fixed features are trained together
    try:
        run(config, folder, shared, lambda done, total: progress(0, done, total), judge)
    except UserError as error:
        ended(0, *how_it_ended(error), time.perf_counter() - started)
    else:
        ended(0, "ok", None, time.perf_counter() - started)
