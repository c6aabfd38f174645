"""The runs in a sweep's folder as they stand at the moment, finished or not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_experiments.errors import UserError
from tl_experiments.metrics.stored import Predictions, read_curve, read_predictions
from tl_experiments.records import METRICS_FILE, RECORD_FILE, START_FILE, SWEEP_FILE, RunRecord

_GOING_ON = ("pending", "running")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run as it stands.

    Args:
        id: Its job id, the name of its folder.
        folder: Where its files are.
        facts: ``config``, ``arm``, ``seed`` and ``learning_rate``; empty where training never began.
        curve: A mapping a validation, as in ``metrics.jsonl``; each ``step`` once, in ascending order.
        record: Where the run is done.
        state: Of the ledger: ``pending``, ``running``, ``ok``, ``failed``, ``diverged``, ...
        cause: Why it did not end well, in one line.
        began: Seconds since 1970 when training began.
    """

    id: str
    folder: Path
    facts: Mapping[str, Any]
    curve: tuple[Mapping[str, Any], ...]
    record: RunRecord | None
    state: str
    cause: str | None
    began: float

    def predictions(self) -> Mapping[str, Predictions]:
        """Split -> what a finished run predicted, read anew; empty if it is not finished or its file cannot be read."""
        try:
            return read_predictions(self.folder) if self.record is not None else {}
        except UserError:
            return {}

    @property
    def ended(self) -> bool:
        """Whether nothing more is to come of it in this command."""
        return self.state not in _GOING_ON


class Reader:
    """Reads the runs that changed since they were read before.

    Args:
        folder: Of the sweep; it need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, object] = {}

    def changed(self, over: bool) -> Iterator[Run]:
        """Runs that differ from what was last read; one counts as read when the next is asked for.

        Args:
            over: The command has ended: what still seems to run was interrupted.
        """
        jobs = _jobs(self.folder)
        for name in sorted({*jobs, *_begun(self.folder)}):
            state, cause = jobs.get(name, ("running", None))
            if over and state in _GOING_ON:
                state, cause = "interrupted", "the command ended before the job did"
            files = [_signature(self.folder / name / file) for file in (START_FILE, METRICS_FILE, RECORD_FILE)]
            signature = (state, cause, *files)
            if self._read.get(name) != signature:
                yield _run(self.folder / name, state, cause)
                self._read[name] = signature


def _run(folder: Path, state: str, cause: str | None) -> Run:
    try:
        record = RunRecord.read(folder)
        state, cause = "ok", None
    except UserError:
        record = None
    facts = _mapping(folder / START_FILE)
    if not facts and record is not None:
        facts = {name: getattr(record, name) for name in ("config", "arm", "seed", "learning_rate")}
    began = next(
        (signature[0] / 1e9 for file in (START_FILE, RECORD_FILE) if (signature := _signature(folder / file))), 0.0
    )
    curve = read_curve(folder / METRICS_FILE)
    return Run(
        id=folder.name, folder=folder, facts=facts, curve=curve, record=record, state=state, cause=cause, began=began
    )


def _begun(folder: Path) -> Iterator[str]:
    for file in (START_FILE, RECORD_FILE):
        yield from (path.parent.name for path in folder.glob(f"*/{file}"))


def _jobs(folder: Path) -> dict[str, tuple[str, str | None]]:
    jobs = _mapping(folder / SWEEP_FILE).get("jobs", [])
    return {job["id"]: (job["state"], job["cause"]) for job in jobs}


def _mapping(path: Path) -> dict[str, Any]:
    """Content of a JSON file; empty where there is none. Our files are replaced whole, so none is half there."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
