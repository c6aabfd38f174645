"""A cluster that does what a test says at each look, and a listener that remembers; nothing is computed."""

from __future__ import annotations

from tl_experiments.errors import UserError
from tl_experiments.records import RECORD_FILE
from tl_experiments.sweeps.cluster import Condition
from tl_experiments.sweeps.journal import Journal, journal_path

RUNNING, WAITING, GONE = Condition("running", "n1"), Condition("waiting", "Priority"), Condition("ended", "gone")


class Scripted:
    """At the n-th look the n-th of ``steps`` is called with this cluster; it sets ``says`` and writes journals."""

    def __init__(self, folder, *steps, name="scripted", outlives=True):
        self.folder, self.steps, self.name, self.outlives = folder, list(steps), name, outlives
        self.tasks, self.says, self.cancelled, self.refuses, self.lost = {}, {}, [], False, {}

    def submit(self, tasks, folder, threads, token):
        if self.refuses:
            raise UserError("partition", "no such one", "choose another")
        handles = [f"{len(self.tasks) + number}" for number in range(len(tasks))]
        self.tasks |= dict(zip(handles, tasks, strict=True))
        return handles

    def find(self, tasks, folder):
        return {task.id: self.lost[task.token] for task in tasks if task.token in self.lost}

    def conditions(self, handles):
        assert self.steps, "looked more often than the test expects"
        self.steps.pop(0)(self)
        return {handle: self.says[handle] for handle in handles if handle in self.says}

    def cancel(self, handles):
        self.cancelled += handles

    def turn(self, handle):
        """A process of the task begins."""
        return turn(self.folder, self.tasks[handle])


def turn(folder, task, host="n1"):
    journal = Journal(journal_path(folder, task.id), {number: job.id for number, job in enumerate(task.jobs)})
    journal.began(where="test", host=host)
    return journal


def record(folder, job):
    (folder / job.id).mkdir(parents=True, exist_ok=True)
    (folder / job.id / RECORD_FILE).write_text("{}")


class Remembers:
    """What a listener was told, in short."""

    def __init__(self):
        self.events = []

    def submitting(self, tasks, cluster, outlives, token):
        self.events.append(("submitting", len(tasks)))

    def submitted(self, tasks, handles):
        self.events.append(("submitted", *handles))

    def refused(self, tasks):
        self.events.append(("refused", len(tasks)))

    def started(self, task):
        self.events.append(("started",))

    def progressed(self, job, done, total):
        self.events.append(("progressed", job.id, done, total))

    def ended(self, job, state, cause, seconds):
        self.events.append(("ended", job.id, state, cause))

    def finished(self, task, seconds):
        self.events.append(("finished",))

    def split(self, task, parts, cause):
        self.events.append(("split", len(parts), cause))

    @property
    def ends(self):
        return {event[1]: event[2:] for event in self.events if event[0] == "ended"}
