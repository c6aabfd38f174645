"""How every job of a sweep stands, from what is on disk and from what its clusters say; changes nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_experiments.cache.locks import Holder
from tl_experiments.errors import UserError
from tl_experiments.records import METRICS_FILE, RECORD_FILE, START_FILE, SWEEP_FILE
from tl_experiments.sweeps.ledger import AT_WORK, Entry, Ledger, State, Submitted
from tl_experiments.sweeps.lock import runs_here
from tl_experiments.sweeps.standing import Standing, standing

_TAIL_BYTES = 4000  # of metrics.jsonl, in which its last line stands


@dataclass(frozen=True)
class Row:
    """A job of the ledger, and how it really stands.

    Args:
        entry: As the ledger has it.
        now: How it stands; its state may be ahead of the ledger's.
        task: What a cluster has of it.
        limit_s: Seconds until the cluster's limit; None where there is none, or it is not known.
    """

    entry: Entry
    now: Standing
    task: Submitted | None = None
    limit_s: float | None = None

    @property
    def state(self) -> State:
        """Of ``now``."""
        return self.now.state


@dataclass(frozen=True)
class Survey:
    """A sweep.

    Args:
        folder: Of the sweep.
        rows: One a job, in the order of the ledger.
        command: The process that runs in the folder.
        silent: Cluster -> why it cannot be asked from here.
    """

    folder: Path
    rows: tuple[Row, ...]
    command: Holder | None
    silent: Mapping[str, str]

    @property
    def common(self) -> frozenset[str]:
        """Overrides that tell no job of several from another."""
        return common([row.entry for row in self.rows])

    @property
    def counts(self) -> dict[str, int]:
        """State -> jobs, by the order in which the rows have them."""
        return dict(Counter(row.state for row in self.rows))

    @property
    def not_entered(self) -> int:
        """Jobs whose end the ledger does not know."""
        return sum(row.entry.state in AT_WORK and row.state not in AT_WORK for row in self.rows)


def open_sweep(folder: Path) -> Ledger:
    """The ledger of a sweep that is there.

    Raises:
        UserError: The folder is none of a sweep, or its ledger cannot be read.
    """
    if not folder.is_dir():
        raise UserError(str(folder), "no such folder", "give the folder of a sweep, outputs/<name>")
    if not (folder / SWEEP_FILE).is_file():
        near = (
            [folder.parent]
            if (folder.parent / SWEEP_FILE).is_file()
            else sorted(path.parent for path in folder.glob(f"*/{SWEEP_FILE}"))
        )
        fix = f"give {near[0]}" if near else "give the folder of a sweep, outputs/<name>"
        raise UserError(str(folder), f"no {SWEEP_FILE} in it", fix)
    return Ledger.open(folder)


def survey(folder: Path, *, ask_clusters: bool = True) -> Survey:
    """How the jobs of the sweep in ``folder`` stand.

    Args:
        folder: Of the sweep.
        ask_clusters: Else only what is on disk counts.

    Raises:
        UserError: The folder is none of a sweep, or its ledger cannot be read.
    """
    ledger, command = open_sweep(folder), runs_here(folder)
    conditions: dict[str, Any] = {}
    silent: dict[str, str] = {}
    if ledger.tasks and ask_clusters:
        from tl_experiments.sweeps.claims import ask  # takes as long as all the rest

        # one without a handle, while a command runs, is about to get it
        conditions, silent = ask([task for task in ledger.tasks.values() if task.handle or not command], folder)
    rows = {entry.id: Row(entry, _on_disk(folder, entry, command)) for entry in ledger.jobs.values()}
    for task in ledger.tasks.values():
        condition = conditions.get(task.id)
        found = standing(folder, task, condition, followed=command is not None)
        for job, now in found.jobs.items():
            limit = condition.time_left_s if condition is not None and now.state == "running" else None
            if ledger.jobs[job].state in AT_WORK:
                rows[job] = Row(ledger.jobs[job], now, task, limit)
    return Survey(folder, tuple(rows.values()), command, silent)


def common(entries: Sequence[Entry]) -> frozenset[str]:
    """Overrides that tell no job of several from another."""
    return frozenset.intersection(*(frozenset(one.overrides) for one in entries)) if len(entries) > 1 else frozenset()


def name_of(entry: Entry, shared: frozenset[str]) -> str:
    """The overrides that tell a job apart."""
    return " ".join(text for text in entry.overrides if text not in shared) or f"job {entry.id}"


def fitting(entries: Iterable[Entry], which: str) -> list[Entry]:
    """The jobs whose id begins with ``which``, or that have all its words among their overrides.

    A word may be an override without what stands before its last name, such as ``lr=0.1`` of ``optimizer.lr=0.1``.
    """
    words = which.split()
    return [
        entry
        for entry in entries
        if (words and entry.id.startswith(which))
        or (words and all(any(_is(word, text) for text in entry.overrides) for word in words))
    ]


def _is(word: str, override: str) -> bool:
    return override == word or override.lstrip("+").endswith(f".{word}")


def _on_disk(folder: Path, entry: Entry, command: Holder | None) -> Standing:
    """Of a job that no cluster has."""
    if (folder / entry.id / RECORD_FILE).is_file():
        return Standing("ok", seconds=entry.seconds)
    if entry.state == "ok":
        return Standing("interrupted", f"its {RECORD_FILE} is gone; run it again")
    if command is None and entry.state in AT_WORK:
        return Standing("interrupted", "the command was killed; run it again")
    if command is None and entry.state == "pending":
        return Standing("skipped", "the command was killed before its turn; run it again")
    detail = _epochs(folder / entry.id) if entry.state == "running" else entry.cause or ""
    return Standing(entry.state, detail, entry.seconds)


def _epochs(folder: Path) -> str:
    """How far a run of this machine is, by its last validation."""
    try:
        with (folder / METRICS_FILE).open("rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - _TAIL_BYTES))
            last = json.loads(stream.read().rpartition(b"\n")[0].rpartition(b"\n")[2])
        whole = json.loads((folder / START_FILE).read_text(encoding="utf-8"))["config"]["trainer"]["max_epochs"]
        return f"epoch {last['epoch']:.4g} of {whole}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
