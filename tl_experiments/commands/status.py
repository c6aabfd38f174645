"""``tl status``: how the jobs of a sweep stand, wherever they run."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tl_experiments.commands.arguments import Parser, positive
from tl_experiments.errors import INTERRUPTED, OK
from tl_experiments.safe_text import one_line, plain

if TYPE_CHECKING:
    from tl_experiments.sweeps.survey import Row, Survey

_ABOUT = """\
how the jobs of a sweep stand: on this machine, on SLURM, on Ray; nothing is changed

  tl status outputs/digits_5_shots
  tl status outputs/digits_5_shots --all        every job; else many that are done or wait are only counted
  tl status outputs/digits_5_shots --watch 10   again every 10 seconds, until all have ended
  tl status outputs/digits_5_shots --json       for scripts

It may be called anywhere where the folder can be read. Where a cluster cannot be asked, it shows what the folder tells.
"""
_MANY = 30  # jobs, above which those that are done or wait are only counted
_MOST_ROWS = 60  # without --all
_NAME_LIMIT, _DETAIL_LIMIT = 60, 80
_AT_REST = ("ok", "pending", "submitted", "skipped", "unchosen", "pruned")


def main(arguments: Sequence[str]) -> int:
    """Show it, once or again and again."""
    parser = Parser("tl status", _ABOUT)
    parser.add_argument("folder", metavar="DIR", type=Path, help="of a sweep, or of a single job's")
    parser.add_argument("--all", action="store_true", help="a line for every job, nothing cut off")
    parser.add_argument("--json", action="store_true", help="every job as JSON")
    parser.add_argument("--watch", type=positive, metavar="SECONDS", help="again and again, until all have ended")
    given = parser.parse_args(arguments)
    from tl_experiments.sweeps.survey import survey

    try:
        while True:
            found = survey(given.folder)
            text = _json(found) if given.json else table(found, everything=given.all)
            if given.watch and sys.stdout.isatty():
                sys.stdout.write("\x1b[H\x1b[2J")
            sys.stdout.write(text)
            sys.stdout.flush()
            if not given.watch or not {"pending", "submitted", "running"} & found.counts.keys():
                return OK
            time.sleep(given.watch)
    except KeyboardInterrupt:  # of --watch
        return INTERRUPTED


def table(found: Survey, *, everything: bool = False) -> str:
    """Who runs what, and how many have ended how.

    Args:
        found: Of a sweep.
        everything: A line for every job; else jobs of one task that stand alike share one, and of many jobs those that
            are done or wait have none.
    """
    rows = list(found.rows)
    if not everything and len(rows) > _MANY:
        rows = [row for row in rows if row.state not in _AT_REST]
    groups = [[row] for row in rows] if everything else _alike(rows)
    shown = groups if everything else groups[:_MOST_ROWS]
    cells = [_cells(found, group, everything) for group in shown]
    widths = [max((len(row[column]) for row in cells), default=0) for column in range(4)]
    lines = [
        one_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
        for row in cells
    ]
    if hidden := sum(map(len, groups)) - sum(map(len, shown)):
        lines.append(f"and {hidden} more: --all")
    return "\n".join([*lines, *_summary(found), ""])


def _summary(found: Survey) -> list[str]:
    counts = ", ".join(f"{count} {state}" for state, count in found.counts.items())
    jobs = "1 job" if len(found.rows) == 1 else f"{len(found.rows)} jobs"
    lines = [f"{plain(str(found.folder))}: {jobs}: {counts or 'none'}"]
    if found.command is not None:
        from tl_experiments.sweeps.lock import by_whom

        lines.append(f"run by {plain(by_whom(found.command))}")
    else:
        lines.append("no command runs in it")
    lines += [f"note: {plain(why)}: what is shown of it is what the folder tells" for why in found.silent.values()]
    if found.command is None and found.not_entered:
        lines.append(f"note: {found.not_entered} of them ended since: the same command again enters them")
    return lines


def _alike(rows: Sequence[Row]) -> list[list[Row]]:
    """Jobs of one task that stand alike."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        ended = row.state not in ("running", "submitted")
        alone = row.entry.id if ended and not row.now.detail else ""
        key = (row.entry.log or row.entry.id, row.state, row.now.detail if ended else "", alone)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _cells(found: Survey, group: Sequence[Row], everything: bool) -> tuple[str, str, str, str]:
    from tl_experiments.sweeps.survey import name_of

    row = max(group, key=lambda one: one.now.done or 0)
    name = plain(name_of(row.entry, found.common))
    more = f" and {len(group) - 1} more" if len(group) > 1 else ""
    detail = plain(_detail(row))
    if not everything:
        name, detail = _cut(name, _NAME_LIMIT), _cut(detail, _DETAIL_LIMIT)
    log = plain(row.entry.log or "") if row.state not in ("ok", "submitted") else ""
    return row.state, name + more, detail, log


def _detail(row: Row) -> str:
    now, parts = row.now, list[str]()
    if row.task is not None and row.state in ("submitted", "running"):
        parts.append(f"{row.task.cluster} {row.task.handle}".strip())
    if now.detail:
        parts.append(now.detail)
    if now.total and row.state in ("running", "submitted"):
        parts.append(f"step {now.done} of {now.total}")
    if now.left_s is not None and row.state == "running":
        parts.append(f"{_clock(now.left_s)} left")
    if row.limit_s is not None:
        parts.append(f"limit in {_clock(row.limit_s)}")
    if now.seconds is not None:
        parts.append(f"{now.seconds:.1f} s")
    return ", ".join(parts)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _json(found: Survey) -> str:
    command = found.command
    content = {
        "folder": str(found.folder),
        "command": command and {"process": command.pid, "host": command.host.split()[0], "since": command.since},
        "clusters_not_asked": dict(found.silent),
        "counts": found.counts,
        "jobs": [
            {
                "id": row.entry.id,
                "overrides": row.entry.overrides,
                "state": row.state,
                "detail": row.now.detail or None,
                "entered": row.entry.state == row.state,
                "seconds": row.now.seconds,
                "step": row.now.done,
                "steps": row.now.total,
                "left_s": row.now.left_s,
                "limit_s": row.limit_s,
                "cluster": row.task and row.task.cluster,
                "handle": row.task and row.task.handle,
                "log": row.entry.log and str(found.folder / row.entry.log),
            }
            for row in found.rows
        ],
    }
    return json.dumps(content, indent=2) + "\n"
