"""What ``tl cache`` prints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from tl_experiments.cache.store import Entry, Store, limit_of
from tl_experiments.errors import UserError
from tl_experiments.safe_text import plain

_KIND = "kind="
_KEY_SHOWN = 20  # characters; any start of a key names it


def listing(folder: Path) -> str:
    """A line a table, those used last first, and their size beside the limit of the last run.

    Raises:
        UserError: There is no such folder.
    """
    entries = _store(folder).entries()
    limit = limit_of(folder)
    total = f"{_tables(len(entries))}, {_size(entries)}" + (f" of {size_text(limit)}" if limit is not None else "")
    rows = [("key", "kind", "what", "rows", "size", "last used")]
    rows += [
        (
            entry.key[:_KEY_SHOWN],
            entry.about.get("kind", ""),
            ", ".join(f"{name} {value}" for name, value in entry.about.items() if name != "kind"),
            f"{entry.rows:,}",
            size_text(entry.size_bytes),
            "in use" if entry.in_use else time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used)),
        )
        for entry in entries
    ]
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    right = (3, 4)
    lines = [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([*(lines if entries else []), f"{total} in {plain(str(folder))}", ""])


def clear(folder: Path, which: Sequence[str]) -> str:
    """Remove tables and say what that freed; a table that a running process has open stays, also if only read.

    Args:
        folder: Of the store.
        which: Starts of keys, or ``kind=...``; none is everything.

    Raises:
        UserError: There is no such folder, one of ``which`` fits no table, or all that fit are in use.
    """
    store = _store(folder)
    entries = store.entries()
    for one in which:
        if not any(_fits(entry, one) for entry in entries):
            kinds = sorted({entry.about.get("kind", "") for entry in entries})
            raise UserError(one, f"no table of {folder} fits, kinds: {', '.join(kinds) or 'none'}", "tl cache list")
    chosen = [entry.key for entry in entries if not which or any(_fits(entry, one) for one in which)]
    removed = store.clear(lambda entry: entry.key in chosen) if which else store.clear()
    kept = len(chosen) - len(removed)
    if which and not removed:
        raise UserError(" ".join(which), f"in use by a running process ({_tables(kept)})", "wait until it ends")
    in_use = f"; {kept} in use and kept" if kept > 0 else ""
    return f"removed {_tables(len(removed))}, {_size(removed)}{in_use}\n"


def size_text(size: int) -> str:
    """Bytes in decimal units, as ``feature_cache.max_bytes`` counts them."""
    number, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:.3g} {unit}" if number < 1000 else f"{number:.0f} {unit}"


def _store(folder: Path) -> Store:
    if not folder.is_dir():
        raise UserError(str(folder), "no such folder", "--dir DIR: the feature_cache.dir of the runs")
    return Store(folder, limit_of(folder) or 0)


def _fits(entry: Entry, which: str) -> bool:
    if which.startswith(_KIND):
        return entry.about.get("kind") == which.removeprefix(_KIND)
    return bool(which) and entry.key.startswith(which)


def _tables(count: int) -> str:
    return f"{count} table" if count == 1 else f"{count} tables"


def _size(entries: Sequence[Entry]) -> str:
    return size_text(sum(entry.size_bytes for entry in entries))
