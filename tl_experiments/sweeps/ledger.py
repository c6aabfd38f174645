"""``sweep.json``: every job of a sweep with its state, whatever happened to it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tl_experiments.errors import UserError
from tl_experiments.records import SWEEP_FILE, write_atomically
from tl_experiments.sweeps.lock import check_ours

SCHEMA_VERSION = 1

State = Literal[
    "pending",
    "submitted",
    "running",
    "ok",
    "failed",
    "diverged",
    "oom",
    "skipped",
    "interrupted",
    "unchosen",
    "pruned",
]
ENDED_BADLY = ("failed", "diverged", "oom")
SETTLED = ("ok", "unchosen", "pruned")
AT_WORK = ("submitted", "running")


@dataclass
class Entry:
    """One job: its state and, where it did not end well, a one-line cause and the log to read.

    ``submitted`` is a job that waits in a cluster's queue, ``skipped`` one that the command did not come to,
    ``interrupted`` one that it began, ``unchosen`` one of a setting that val did not choose with the tuning seed,
    ``pruned`` a trial of a search that ended early since it was behind the others.
    """

    id: str
    overrides: list[str]
    state: State = "pending"
    cause: str | None = None
    log: str | None = None
    seconds: float | None = None


@dataclass
class Submitted:
    """A task that a cluster has, until the ledger knows how its jobs ended.

    Args:
        id: Of the task.
        jobs: Ids of its jobs that were to run.
        cluster: Which, as ``executors.cluster_of`` opens it.
        outlives: Whether it goes on when the command has ended.
        handle: The cluster's name for it; empty from just before it is handed over until the cluster has answered. A
            command that was killed in between leaves it so: ``Cluster.find`` says whether it is there.
        log: Where its output goes, from the sweep's folder.
        since: Unix time at which it was submitted.
        token: Of the submission, by which the cluster can be asked for its tasks.
    """

    id: str
    jobs: list[str]
    cluster: str
    outlives: bool
    handle: str
    log: str
    since: float
    token: str = ""


@dataclass
class Ledger:
    """The jobs of a sweep, by id, what fixes their last bits (``plan``), and what of them is on a cluster (``tasks``).

    One process writes it.
    """

    folder: Path
    commands: list[str] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)
    jobs: dict[str, Entry] = field(default_factory=dict)
    tasks: dict[str, Submitted] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Ledger:
        """Read the ledger of ``folder``, or begin one.

        Raises:
            UserError: The file is there but cannot be read.
        """
        path = folder / SWEEP_FILE
        if not path.exists():
            return cls(folder)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema version {content['schema_version']}, expected {SCHEMA_VERSION}")
            entries = {entry["id"]: Entry(**entry) for entry in content["jobs"]}
            tasks = {task["id"]: Submitted(**task) for task in content.get("tasks", [])}  # none in older files
            return cls(folder, content["commands"], content["plan"], entries, tasks)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                str(path), f"cannot be read ({error})", "choose another name=, or move the folder away"
            ) from None

    def add(self, command: str, jobs: Sequence[tuple[str, Sequence[str]]]) -> None:
        """Enter a command and its jobs; jobs that are known already keep their state."""
        if command not in self.commands:
            self.commands.append(command)
        for job_id, overrides in jobs:
            self.jobs.setdefault(job_id, Entry(job_id, list(overrides)))

    def regroup(self, groups: Sequence[Sequence[str]]) -> None:
        """Enter which jobs are trained in one computation; they leave the groups in which they were before.

        A group keeps its order and is kept as long as its jobs are in no other, also when they are done: an unfinished
        one of them is to be computed as it was.
        """
        moved = {job_id for group in groups for job_id in group}
        kept = [[job_id for job_id in group if job_id not in moved] for group in self.plan.get("groups", [])]
        self.plan["groups"] = [group for group in kept if group] + [list(group) for group in groups]

    def on_a_cluster(self) -> set[str]:
        """Ids of the jobs that a cluster has, when no command runs."""
        return {job_id for task in self.tasks.values() if task.outlives for job_id in task.jobs}

    def forget_ended(self) -> None:
        """Take out the tasks of which no job waits or runs any more."""
        self.tasks = {
            task.id: task
            for task in self.tasks.values()
            if any(self.jobs[job_id].state in AT_WORK for job_id in task.jobs)
        }

    def write(self) -> None:
        """Replace ``sweep.json`` atomically.

        Raises:
            UserError: Another command has taken this one for dead and writes it.
        """
        check_ours(self.folder)
        content = {
            "schema_version": SCHEMA_VERSION,
            "name": self.folder.name,
            "commands": self.commands,
            "plan": self.plan,
            "jobs": [dataclasses.asdict(entry) for entry in self.jobs.values()],
            "tasks": [dataclasses.asdict(task) for task in self.tasks.values()],
        }
        write_atomically(self.folder / SWEEP_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
