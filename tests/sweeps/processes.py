"""A cluster of a queue and processes on this machine, for what every cluster must be able to do."""

from __future__ import annotations

import multiprocessing
import os
import signal

from tl_experiments.sweeps.cluster import Condition
from tl_experiments.sweeps.local import server
from tl_experiments.sweeps.remote import work_remotely


def _begin(task, folder, threads, handle):
    os.setsid()  # it outlives what started it
    work_remotely(task, folder, threads, handle)


class Processes:
    """Handles are numbers of processes; ``submissions`` counts the tasks that were handed over."""

    name = "processes"

    def __init__(self, outlives=True):
        self.outlives, self.submissions = outlives, 0

    def submit(self, tasks, folder, threads):
        self.submissions += len(tasks)
        context = server(alone=True)
        found = []
        for task in tasks:
            process = context.Process(target=_begin, args=(task, folder, threads, f"turn {self.submissions}"))
            process.start()
            found.append(str(process.pid))
        return found

    def conditions(self, handles):
        multiprocessing.active_children()  # waits for those that have ended
        return {
            handle: Condition("running") if os.path.exists(f"/proc/{handle}") else Condition("ended", "gone")
            for handle in handles
        }

    def cancel(self, handles):
        for handle in handles:
            os.kill(int(handle), signal.SIGKILL)
