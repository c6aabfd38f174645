"""What the folders of sweeps hold: records, their hashes, and how each job ended."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_experiments.analysis.arms import SearchBudget
from tl_experiments.analysis.results import COMPARISON_VERSION
from tl_experiments.errors import UserError
from tl_experiments.records import RECORD_FILE, SCHEMA_VERSION, SWEEP_FILE

_SUGGESTED = 3
PREDICTIONS_FILE = "predictions.parquet"  # metrics.stored has it too, beside numpy: a stored comparison needs no numpy
_JOB_KEYS = frozenset({"id", "overrides", "state", "cause", "log", "seconds"})


@dataclass(frozen=True)
class Found:
    """Finished and unfinished jobs of one or several folders.

    Args:
        records: Folder of a finished job -> sha256 of its record's bytes, in the order of the folders.
        predictions: Folder of a finished job -> size and time of change of its predictions; null where it has none.
        jobs: Entries of every ``sweep.json``; one that is ``ok`` without a record is ``unreadable`` here.
        costs: What the commands of the sweeps cost, predicted and actual, as their ``sweep.json`` has it.
        searches: What ``tl tune`` spent in them.
    """

    records: Mapping[Path, str]
    predictions: Mapping[Path, tuple[int, int] | None]
    jobs: tuple[Mapping[str, Any], ...]
    costs: tuple[Mapping[str, Any], ...]
    searches: tuple[SearchBudget, ...] = ()

    @property
    def key(self) -> str:
        """Changes with any record or its predictions, with how any job ended, and with the version of the comparison.

        Predictions are large: like ``make``, it trusts their size and time of change rather than read them again.
        """
        content = [
            [SCHEMA_VERSION, COMPARISON_VERSION],
            sorted(json.dumps([job.name, digest, self.predictions[job]]) for job, digest in self.records.items()),
            sorted(json.dumps([job["id"], job["state"], job["cause"], job["log"]]) for job in self.jobs),
            sorted([sorted(search.jobs), sorted(search.states.items())] for search in self.searches),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def find(folders: Sequence[Path]) -> Found:
    """Look for finished jobs: those that ``sweep.json`` calls ok, or without it every ``record.json``.

    Raises:
        UserError: A folder holds no record, or its ``sweep.json`` is damaged.
    """
    records: dict[Path, str] = {}
    jobs: list[Mapping[str, Any]] = []
    costs: list[Mapping[str, Any]] = []
    searches: list[SearchBudget] = []
    for folder in folders:
        entries, plan = _sweep(folder)
        costs += plan.get("costs", ())
        searches += _searches(plan, entries or ())
        digests = {job: digest for job in _job_folders(folder, entries) if (digest := _digest(job))}
        if not digests:
            raise _no_record(folder, entries)
        records |= digests
        there = {job.name for job in digests}
        for entry in entries or ():
            missing = entry["state"] == "ok" and entry["id"] not in there
            jobs.append({**entry, "state": "unreadable", "cause": f"no {RECORD_FILE}"} if missing else entry)
    return Found(
        records, {job: _stat(job / PREDICTIONS_FILE) for job in records}, tuple(jobs), tuple(costs), tuple(searches)
    )


def _sweep(folder: Path) -> tuple[list[Mapping[str, Any]] | None, Mapping[str, Any]]:
    """Entries and plan of a sweep; no entries where there is no ``sweep.json``."""
    path = folder / SWEEP_FILE
    if not path.is_file():
        return None, {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries: list[Mapping[str, Any]] = list(content["jobs"])
        plan: Mapping[str, Any] = {
            **content["plan"],
            "costs": [dict(cost) for cost in content["plan"].get("costs", ())],
        }
        _searches(plan, ())
        incomplete = [entry for entry in entries if not entry.keys() >= _JOB_KEYS]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(str(path), f"not readable ({error})", "run the same command again to write it anew") from None
    if incomplete:
        raise UserError(str(path), f"a job without {sorted(_JOB_KEYS - incomplete[0].keys())}", "run the command again")
    return entries, plan


def _searches(plan: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> list[SearchBudget]:
    """What ``tl tune`` entered in the plan, with the seconds of the jobs that left no record."""
    lost = {entry["id"]: float(entry["seconds"] or 0) for entry in entries if entry["state"] != "ok"}
    return [
        SearchBudget(
            frozenset(search["jobs"]),
            dict(search["states"]),
            sum(lost.get(job, 0.0) for job in set(search["jobs"])),
            {key: (low, high) for key, (low, high) in search.get("intervals", {}).items()},  # none in older files
        )
        for search in plan.get("tuning", ())
    ]


def _job_folders(folder: Path, entries: Sequence[Mapping[str, Any]] | None) -> list[Path]:
    if entries is not None:
        # A name with a separator in it would lead out of the sweep's folder.
        names = [str(entry["id"]) for entry in entries if entry["state"] == "ok"]
        return [folder / name for name in names if name not in ("", ".", "..") and Path(name).name == name]
    if (folder / RECORD_FILE).is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/{RECORD_FILE}"))


def _digest(folder: Path) -> str | None:
    try:
        return hashlib.sha256((folder / RECORD_FILE).read_bytes()).hexdigest()
    except OSError:
        return None


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def with_runs(folder: Path) -> str:
    """The newest folders in ``folder`` that hold finished runs, up to three, as one pastes them; else empty."""
    newest: dict[Path, float] = {}
    for record in folder.glob(f"*/*/{RECORD_FILE}"):
        with suppress(OSError):
            sweep = record.parents[1]
            newest[sweep] = max(newest.get(sweep, 0.0), record.stat().st_mtime)
    ranked = sorted(newest, key=lambda sweep: (-newest[sweep], sweep))
    return " or ".join(shlex.quote(str(sweep)) for sweep in ranked[:_SUGGESTED])


def _no_record(folder: Path, entries: Sequence[Mapping[str, Any]] | None) -> UserError:
    if not folder.is_dir():
        return UserError(str(folder), "no such folder", "give the folder of a sweep, outputs/<name>")
    got = "no finished job" if entries is None else f"0 of {len(entries)} jobs finished"
    sweeps = with_runs(folder)
    fix = f"give a sweep in it, such as {sweeps}" if sweeps else "run the sweep, or give another folder"
    return UserError(str(folder), f"{got}, expected a {RECORD_FILE} in it or in a job's folder", fix)
