"""What a task that runs on another machine says, as lines of a file that the command reads whenever it looks."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tl_experiments.records import append_line

CLUSTER_FOLDER = "cluster"  # of a sweep: journals and locks of tasks that a cluster has
_PROGRESS_S = 5.0  # least seconds between two lines on a job's progress


def journal_path(folder: Path, task_id: str) -> Path:
    """The journal of a task, in a sweep's folder."""
    return folder / CLUSTER_FOLDER / f"{task_id}.jsonl"


def lock_path(folder: Path, task_id: str) -> Path:
    """The lock that whoever computes a task holds, in a sweep's folder."""
    return folder / CLUSTER_FOLDER / f"{task_id}.lock"


class Journal:
    """Writes lines: ``began``, then the messages of ``worker.run_task``, then ``over``. One process writes it.

    Jobs are named by their ids, so that a line means the same whatever task reads it. Every line has its time and,
    once a turn began, its turn. One that was cut leaves a part of a line at most; the next begins on its own.
    """

    def __init__(self, path: Path, job_ids: Mapping[int, str]) -> None:
        self._path, self._ids = path, job_ids
        self._turn: str | None = None
        self._next_progress = 0.0

    def began(self, **about: Any) -> None:
        """A turn of the task begins; ``about`` says where."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists() and not self._path.read_bytes().endswith(b"\n"):
            append_line(self._path, "")
        self._turn = secrets.token_hex(4)
        self._write({"event": "began", "pid": os.getpid(), **about})

    def send(self, message: tuple[Any, ...]) -> None:
        """Take a message of ``worker.run_task``."""
        match message:
            case "ended", position, state, cause, seconds:
                job = self._ids[position]
                self._write({"event": "ended", "job": job, "state": state, "cause": cause, "seconds": seconds})
            case "progress", position, done, total:
                if time.monotonic() >= self._next_progress:
                    self._next_progress = time.monotonic() + _PROGRESS_S
                    self._write({"event": "progress", "job": self._ids[position], "done": done, "total": total})
            case "left", state, cause, final:
                self._write({"event": "left", "state": state, "cause": cause, "final": final})

    def over(self) -> None:
        """The task will say no more."""
        self._write({"event": "over"})

    def _write(self, line: dict[str, Any]) -> None:
        append_line(self._path, json.dumps({**line, "time": time.time(), "turn": self._turn}))


class JournalReader:
    """Reads what was added since the last time; a line that is not whole yet is left for the next.

    A task that is submitted again gets a new journal. What a process of an earlier submission still has to say stands
    there without a beginning, and is left out.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0
        self._turns: set[Any] = set()

    def news(self) -> list[dict[str, Any]]:
        """New lines, in order; those that a cut turn left unreadable are left out."""
        try:
            with self._path.open("rb") as stream:  # opened anew: NFS shows other machines' writes to an open alone
                stream.seek(self._read)
                content = stream.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        return [line for line in map(_parsed, whole.splitlines()) if line is not None and self._is_ours(line)]

    def _is_ours(self, line: dict[str, Any]) -> bool:
        if line["event"] == "began":
            self._turns.add(line.get("turn"))
        return line.get("turn") is None or line["turn"] in self._turns


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("event"), str) else None
