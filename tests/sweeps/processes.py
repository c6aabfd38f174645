"""A cluster of processes on this machine, for what every cluster must be able to do.

``python -m tests.sweeps.processes train -m ...`` is ``tl`` with it in the place of SLURM.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from tl_experiments.sweeps import claims, executors, sweep
from tl_experiments.sweeps.cluster import Condition
from tl_experiments.sweeps.journal import JournalReader, journal_path
from tl_experiments.sweeps.local import server
from tl_experiments.sweeps.remote import work_remotely

ON_PROCESSES = ("executor=slurm", "executor.cpus_per_task=1", "executor.poll_s=0.2")
KILLED_WHILE_SUBMITTING = "TEST_KILLED_WHILE_SUBMITTING"


def _begin(task, folder, threads, handle):
    os.setsid()  # it outlives what started it
    work_remotely(task, folder, threads, handle)


def begin_rank(task, folder, threads, variables):
    """A process of srun; its exit code is the signal that ended its part."""
    os.environ.update(variables)
    sys.exit(work_remotely(task, folder, threads, "a turn") or 0)


class Processes:
    """Handles are numbers of processes; ``submissions`` counts the tasks that were handed over.

    Args:
        outlives: As of ``Cluster``.
        turns: Processes of a task; all but the first stand for turns of it on nodes that the cluster lost.
    """

    name = "processes"

    def __init__(self, outlives=True, turns=1):
        self.outlives, self.turns, self.submissions = outlives, turns, 0

    def submit(self, tasks, folder, threads, token):
        self.submissions += len(tasks)
        context = server(alone=True)
        found = []
        for task in tasks:
            turns = [
                context.Process(target=_begin, args=(task, folder, threads, f"turn {number}"))
                for number in range(self.turns)
            ]
            for process in turns:
                process.start()
                multiprocessing.process._children.discard(process)  # else Python would wait for it when it ends
            found.append(" ".join(str(process.pid) for process in turns))
        if os.environ.get(KILLED_WHILE_SUBMITTING):
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    def find(self, tasks, folder):
        began = {one.id: JournalReader(journal_path(folder, one.id)).news() for one in tasks}
        return {one: str(lines[0]["pid"]) for one, lines in began.items() if lines and is_alive(lines[0]["pid"])}

    def conditions(self, handles):
        return {
            handle: Condition("running") if any(map(is_alive, handle.split())) else Condition("ended", "gone")
            for handle in handles
        }

    def cancel(self, handles):
        for pid in " ".join(handles).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGTERM)


def is_alive(pid):
    """Whether it is there, and no zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def put_in_place(cluster, patch=setattr):
    """Let ``executor=slurm`` mean ``cluster``; with ``monkeypatch.setattr`` as ``patch`` for a test alone."""
    patch(executors, "_open", lambda executor: cluster)
    for module in (executors, claims):
        patch(module, "cluster_of", lambda name: cluster)
    if hasattr(sweep, "check_executor"):  # which would ask SLURM
        patch(sweep, "check_executor", lambda jobs: None)


if __name__ == "__main__":
    from tests.sweeps import processes  # not __main__, which a process of a task could not import
    from tl_experiments.cli import main

    put_in_place(processes.Processes())
    main(sys.argv[1:])
