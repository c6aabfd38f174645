"""What the folders of sweeps hold: records, their hashes, and how each job ended."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_experiments.analysis.results import COMPARISON_VERSION
from tl_experiments.errors import UserError
from tl_experiments.records import RECORD_FILE, SCHEMA_VERSION, RunRecord

SWEEP_FILE = "sweep.json"
_JOB_KEYS = frozenset({"id", "overrides", "state", "cause", "log", "seconds"})


@dataclass(frozen=True)
class Found:
    """Finished and unfinished jobs of one or several folders.

    Args:
        records: Folder of a finished job -> sha256 of its record's bytes, in the order of the folders.
        jobs: Entries of every ``sweep.json``; one that is ``ok`` without a record is ``unreadable`` here.
    """

    records: Mapping[Path, str]
    jobs: tuple[Mapping[str, Any], ...]

    @property
    def key(self) -> str:
        """Changes with any record, with how any job ended, and with the version of the comparison."""
        content = [
            [SCHEMA_VERSION, COMPARISON_VERSION],
            sorted((folder.name, digest) for folder, digest in self.records.items()),
            sorted(json.dumps([job["id"], job["state"], job["cause"], job["log"]]) for job in self.jobs),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def find(folders: Sequence[Path]) -> Found:
    """Look for finished jobs: those that ``sweep.json`` calls ok, or without it every ``record.json``.

    Raises:
        UserError: A folder holds no record, or its ``sweep.json`` is damaged.
    """
    records: dict[Path, str] = {}
    jobs: list[Mapping[str, Any]] = []
    for folder in folders:
        entries = _entries(folder)
        digests = {job: digest for job in _job_folders(folder, entries) if (digest := _digest(job))}
        if not digests:
            raise _no_record(folder, entries)
        records |= digests
        there = {job.name for job in digests}
        for entry in entries or ():
            missing = entry["state"] == "ok" and entry["id"] not in there
            jobs.append({**entry, "state": "unreadable", "cause": f"no {RECORD_FILE}"} if missing else entry)
    return Found(records, tuple(jobs))


def load(found: Found) -> tuple[list[RunRecord], list[Mapping[str, Any]]]:
    """Read the records; a damaged one becomes an ``unreadable`` job, so that it costs only itself.

    A job that ended in several folders is listed once, and not at all among the lost if one of them has its record.
    """
    records, unreadable = [], {}
    for folder in found.records:
        try:
            records.append(RunRecord.read(folder))
        except UserError as error:
            unreadable[folder.name] = str(error)
    jobs = {str(job["id"]): job for job in found.jobs if job["state"] not in ("ok", "unchosen")}
    listed = {str(job["id"]): job for job in found.jobs}
    empty: Mapping[str, Any] = {"overrides": [], "log": None, "seconds": None}
    for name, cause in unreadable.items():
        jobs[name] = {**empty, **listed.get(name, {}), "id": name, "state": "unreadable", "cause": cause}
    for record in [record for record in records if record.is_debug_run]:
        records.remove(record)
        cause = "a debug run, whose numbers are no result"
        jobs[record.job_id] = {
            **empty, **listed.get(record.job_id, {}), "id": record.job_id, "state": "debug", "cause": cause
        }  # fmt: skip
    done = {record.job_id for record in records}
    return records, [job for name, job in jobs.items() if name not in done]


def _entries(folder: Path) -> list[Mapping[str, Any]] | None:
    path = folder / SWEEP_FILE
    if not path.is_file():
        return None
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["jobs"]
        incomplete = [entry for entry in entries if not entry.keys() >= _JOB_KEYS]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(str(path), f"not readable ({error})", "run the same command again to write it anew") from None
    if incomplete:
        raise UserError(str(path), f"a job without {sorted(_JOB_KEYS - incomplete[0].keys())}", "run the command again")
    return list(entries)


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


def _no_record(folder: Path, entries: Sequence[Mapping[str, Any]] | None) -> UserError:
    if not folder.is_dir():
        return UserError(str(folder), "no such folder", "give the folder of a sweep, outputs/<name>")
    got = "no finished job" if entries is None else f"0 of {len(entries)} jobs finished"
    sweeps = sorted(path.parent.name for path in folder.glob(f"*/{SWEEP_FILE}"))
    fix = f"give one of the sweeps in it, {sweeps[0]}" if sweeps else "run the sweep, or give another folder"
    return UserError(str(folder), f"{got}, expected a {RECORD_FILE} in it or in a job's folder", fix)
