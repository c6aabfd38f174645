"""``tl logs``: what jobs have said."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tl_experiments.commands.arguments import Parser, positive
from tl_experiments.errors import INTERRUPTED, OK, UserError
from tl_experiments.safe_text import one_line, plain

if TYPE_CHECKING:
    from tl_experiments.sweeps.ledger import Entry

_ABOUT = """\
what jobs of a sweep have said

  tl logs outputs/digits_5_shots                    the end of the log of each job that failed, or a list of logs
  tl logs outputs/digits_5_shots 3f2a               the log of the job whose id begins so
  tl logs outputs/digits_5_shots 'n=2 seed=0'       of the job with these overrides
  tl logs outputs/digits_5_shots seed=0 --tail 50
  tl logs outputs/digits_5_shots seed=0 --follow    and what is added, until the job has ended

Control codes are left out, so that a log cannot steer the terminal.
"""
_LAST_LINES = 15  # of a failed job
_MOST_LOGS = 10
_FAILED = ("failed", "diverged", "oom")
_CHUNK_BYTES = 1 << 16
_LOOK_S = 0.5  # between two looks at a log
_ASK_S = 30.0  # between two questions to its cluster


def main(arguments: Sequence[str]) -> int:
    """Print them."""
    parser = Parser("tl logs", _ABOUT)
    parser.add_argument("folder", metavar="DIR", type=Path, help="of a sweep")
    parser.add_argument("job", nargs="?", help="start of an id, or overrides: 'n=2 seed=0'")
    parser.add_argument("--tail", type=positive, metavar="N", help="the last lines alone")
    parser.add_argument("--follow", action="store_true", help="go on with what is added")
    given = parser.parse_args(arguments)
    from tl_experiments.sweeps.survey import fitting, open_sweep

    entries = list(open_sweep(given.folder).jobs.values())
    if given.job is None:
        if given.follow:
            parser.error("--follow needs a job")
        sys.stdout.write(_overview(given.folder, entries, given.tail or _LAST_LINES))
        return OK
    path = _log_of(given.folder, fitting(entries, given.job), given.job)
    try:
        _print(given.folder, path, given.tail, given.follow)
    except KeyboardInterrupt:  # the way to end --follow
        return INTERRUPTED
    return OK


def _overview(folder: Path, entries: Sequence[Entry], lines: int) -> str:
    from tl_experiments.sweeps.survey import common, name_of, survey

    shared = common(entries)
    logs: dict[str, Entry] = {}
    for entry in entries:
        if entry.log and (folder / entry.log).is_file():
            logs.setdefault(entry.log, entry)
    now = {row.entry.id: row.now for row in survey(folder).rows}  # no command may have entered it yet
    failed = {log: entry for log, entry in logs.items() if now[entry.id].state in _FAILED}
    if not failed:
        listed = [f"{plain(str(folder / log))}  {plain(name_of(entry, shared))}" for log, entry in logs.items()]
        return "\n".join([*listed, "no job failed" if listed else f"no logs: {plain(str(folder))}", ""])
    parts = []
    for log, entry in list(failed.items())[:_MOST_LOGS]:
        how = now[entry.id]
        head = f"{name_of(entry, shared)}: {how.state}: {how.detail}: {folder / log}"
        parts += [plain(head), *(f"  {line}" for line in _last(folder / log, lines)), ""]
    if len(failed) > _MOST_LOGS:
        parts.append(f"and {len(failed) - _MOST_LOGS} more that failed: tl status {plain(str(folder))}")
    return "\n".join(parts)


def _log_of(folder: Path, fit: Sequence[Entry], which: str) -> Path:
    from tl_experiments.sweeps.survey import common, name_of

    if not fit:
        raise UserError(which, f"no job of {folder} fits", f"tl status {folder} --all shows them")
    logs: dict[str, Entry] = {}
    for entry in fit:
        if entry.log:
            logs.setdefault(entry.log, entry)
    if not logs:
        states = ", ".join(sorted({entry.state for entry in fit}))
        raise UserError(which, f"no log, expected one of a job that has begun, not {states}", f"tl status {folder}")
    if len(logs) > 1:
        names = [f"{entry.id[:8]} ({name_of(entry, common(fit))})" for entry in list(logs.values())[:3]]
        raise UserError(which, f"fits {len(logs)} logs: {', '.join(names)} ...", "give more of it")
    (log,) = logs
    path = folder / log
    if not path.is_file():
        raise UserError(str(path), "not there yet", f"tl status {folder} shows whether the job has begun")
    return path


def _print(folder: Path, path: Path, tail: int | None, follow: bool) -> None:
    rest, ask_at = b"", time.monotonic() + _LOOK_S / 2  # a cluster takes its time: first show what is there
    with path.open("rb") as stream:
        if tail is not None:
            stream.seek(_start_of_last(stream, tail))
        while True:
            if ask := time.monotonic() > ask_at:
                ask_at = time.monotonic() + _ASK_S
            goes_on = follow and _at_work(folder, path, ask)  # asked before the last look
            while chunk := stream.read(_CHUNK_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                sys.stdout.write("".join(f"{_shown(line)}\n" for line in lines))
            sys.stdout.flush()
            if not goes_on:
                break
            time.sleep(_LOOK_S)
    if rest:
        sys.stdout.write(f"{_shown(rest)}\n")


def _last(path: Path, n: int) -> list[str]:
    """The last ``n`` lines of a file."""
    with path.open("rb") as stream:
        stream.seek(_start_of_last(stream, n))
        return [_shown(line) for line in stream.read().removesuffix(b"\n").split(b"\n")]


def _start_of_last(stream: BinaryIO, n: int) -> int:
    """Where the last ``n`` lines begin."""
    end = stream.seek(0, 2)
    content = b""
    while len(content) < end and content[:-1].count(b"\n") < n:
        size = min(_CHUNK_BYTES, end - len(content))
        stream.seek(end - len(content) - size)
        content = stream.read(size) + content
    lines = content.removesuffix(b"\n").split(b"\n")
    before = b"\n".join([*lines[:-n], b""])
    return end - len(content) + len(before)


def _shown(line: bytes) -> str:
    """As a terminal would leave it, where a progress bar has written over itself, without control codes."""
    text = line.decode("utf-8", "replace").rstrip("\r")
    return one_line(text.rpartition("\r")[2])


def _at_work(folder: Path, path: Path, ask_clusters: bool) -> bool:
    """Whether more of this log is to be expected; a task that died without a word is known to its cluster alone."""
    from tl_experiments.sweeps.survey import survey

    rows = survey(folder, ask_clusters=ask_clusters).rows
    states = {row.state for row in rows if row.entry.log and folder / row.entry.log == path}
    return not states.isdisjoint(("pending", "submitted", "running"))
