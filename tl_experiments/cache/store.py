"""A folder of tables with a limit: what was used least recently makes room, what is in use stays."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_experiments import interrupt
from tl_experiments.cache.locks import holder, try_hold
from tl_experiments.cache.segments import INDEX_BYTES, Segment
from tl_experiments.cache.table import ABOUT_FILE, Table
from tl_experiments.errors import StorageError
from tl_experiments.records import write_atomically

logger = logging.getLogger(__name__)

FORMAT = 1  # of tables on disk; those of another one are removed
_OURS = "tl_experiments table"  # folders that do not say so are never touched, wherever dir= points
LIMIT_FILE = "limit.json"
_LOCKS = "locks"
_SPARE_BYTES = 1 << 30  # of the disk, which checkpoints and records may need
_KEY = re.compile(r"[a-z0-9][a-z0-9._-]{0,119}")
_DIGEST_FILE = re.compile(r"[0-9a-f]{32}\.json")


@dataclass(frozen=True)
class Entry:
    """A table as ``tl cache list`` shows it.

    Args:
        key: Its name in the store.
        about: What it holds: ``kind``, ``dataset``, ...
        rows: That are made.
        row_bytes: Bytes of a row.
        size_bytes: On disk.
        last_used: Unix time of the last opening or closing.
        in_use: Whether a living process has it open.
        reserved_bytes: That it takes when it is filled as far as was said when it was opened.
    """

    key: str
    about: Mapping[str, str]
    rows: int
    row_bytes: int
    size_bytes: int
    last_used: float
    in_use: bool
    reserved_bytes: int


class Store:
    """Tables below one folder, together no larger than ``max_bytes``.

    Args:
        folder: Of the store; made when the first table is opened.
        max_bytes: Most that tables may take, 0 or more; what open tables may yet be filled with is counted.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes

    def open(self, key: str, row_bytes: int, rows: int, about: Mapping[str, str]) -> Table | None:
        """Open a table, or make it; it stays in use until it is closed, is not referenced, or the process ends.

        Args:
            key: Names the contents completely, see ``key_of``.
            row_bytes: Bytes of a row, 1 or more.
            rows: How many may be filled.
            about: Short texts for people: ``kind`` first of all.

        Returns:
            None where the table does not fit into ``max_bytes`` or on the disk, beside what is in use, or where the
            folder cannot be written.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(f"key {key!r}, expected lower-case letters, digits and . _ -")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._alone():
                return self._open(key, row_bytes, rows, about)
        except (OSError, StorageError) as error:
            why = error.what if isinstance(error, StorageError) else error.strerror
            logger.warning("%s cannot be written (%s): nothing is cached", self.folder, why)
            return None

    def locks(self, key: str) -> Path:
        """Folder of the locks under which several tables are filled together."""
        return self.folder / _LOCKS / key

    def entries(self) -> list[Entry]:
        """All tables, those used last first."""
        found = [entry for path in _folders(self.folder) if (entry := _entry(path)) is not None]
        return sorted(found, key=lambda entry: (-entry.last_used, entry.key))

    @property
    def digests(self) -> Path:
        """Folder of the files' digests, see ``data/digests.py``."""
        return self.folder / "digests"

    def clear(self, chosen: Callable[[Entry], bool] | None = None) -> list[Entry]:
        """Remove the chosen tables, except those that a living process has open.

        Args:
            chosen: Which; None is everything, the files' digests too.

        Returns:
            What was removed.
        """
        if not self.folder.is_dir():
            return []
        with self._alone():
            found = [entry for entry in self.entries() if not entry.in_use]
            removed = [entry for entry in found if chosen is None or chosen(entry)]
            for entry in removed:
                self._remove(entry.key)
            for path in self.digests.glob("*.json") if chosen is None else ():
                if _DIGEST_FILE.fullmatch(path.name):
                    path.unlink(missing_ok=True)
        return removed

    def _open(self, key: str, row_bytes: int, rows: int, about: Mapping[str, str]) -> Table | None:
        folder = self.folder / key
        found = _describe(_content(folder))
        if found is None or found["row_bytes"] != row_bytes:
            if _in_use(folder):
                return None
            self._remove(key)
            found = None
        rows = max(rows, found["rows"]) if found else rows
        if not self._make_room(key, rows * (row_bytes + INDEX_BYTES)):
            return None
        content = {"what": _OURS, "format": FORMAT, "row_bytes": row_bytes, "rows": rows, "about": dict(about)}
        text = json.dumps(content, indent=2)
        write_atomically(folder / ABOUT_FILE, text)
        limit = json.dumps({"max_bytes": self.max_bytes})
        if not (self.folder / LIMIT_FILE).exists() or (self.folder / LIMIT_FILE).read_text() != limit:
            write_atomically(self.folder / LIMIT_FILE, limit)
        uses = folder / "uses"
        for path in uses.iterdir() if uses.is_dir() else ():
            if holder(path) is None:  # its process was killed
                path.unlink(missing_ok=True)
        used = try_hold(uses / f"{os.getpid()}-{secrets.token_hex(4)}")
        assert used is not None, "nobody else has this name"
        table = Table(folder, row_bytes, text, used)
        weakref.finalize(table, used.release)  # at the latest when the process ends
        return table

    def _make_room(self, key: str, need: int) -> bool:
        """Remove tables that are not in use, the least recently used first, until ``need`` bytes for ``key`` fit."""
        others = [entry for entry in self.entries() if entry.key != key]
        own = next((entry.size_bytes for entry in self.entries() if entry.key == key), 0)
        taken = sum(
            max(entry.size_bytes, entry.reserved_bytes) if entry.in_use else entry.size_bytes for entry in others
        )
        promised = sum(max(entry.reserved_bytes - entry.size_bytes, 0) for entry in others if entry.in_use)
        excess = taken + need - self.max_bytes
        if need > own:
            short = promised + need - own + _SPARE_BYTES - shutil.disk_usage(self.folder).free
            excess = max(excess, short)
        idle = [entry for entry in reversed(others) if not entry.in_use]
        if excess > sum(entry.size_bytes for entry in idle):
            return False
        for entry in idle:
            if excess <= 0:
                break
            self._remove(entry.key)
            excess -= entry.size_bytes
        return True

    def _remove(self, key: str) -> None:
        # under another name first, so that a table is there whole or not at all
        aside = self.folder / f".{key[:100]}.{secrets.token_hex(4)}.removed"
        with suppress(FileNotFoundError):
            os.rename(self.folder / key, aside)
        for path in self.folder.glob(".*.removed"):  # also what a killed process left
            shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Opening and removing are done by one process at a time."""
        while (held := try_hold(self.folder / ".lock")) is None:
            interrupt.check()
            time.sleep(0.01)
        with held:
            yield


def key_of(kind: str, ingredients: Mapping[str, str]) -> str:
    """A table's key: its kind, and a hash of everything that its contents depend on.

    Args:
        kind: For people, ``decoded`` for example: lower-case letters, digits and ``-``.
        ingredients: Name -> value. Another name or value is another key.
    """
    text = json.dumps([kind, sorted(ingredients.items())])
    return f"{kind}-{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}"


def limit_of(folder: Path) -> int | None:
    """``max_bytes`` of the last run that used a store, or None."""
    try:
        return int(json.loads((folder / LIMIT_FILE).read_text())["max_bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _content(folder: Path) -> dict[str, Any] | None:
    """What a table's folder says about it, or None of a folder that is no table."""
    try:
        content = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
        return content if content["what"] == _OURS else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _describe(content: dict[str, Any] | None) -> dict[str, Any] | None:
    """The same in a form to rely on, or None of another format."""
    try:
        if content is None or content["format"] != FORMAT:
            return None
        about = {str(name): str(value) for name, value in content["about"].items()}
        return {"row_bytes": int(content["row_bytes"]), "rows": int(content["rows"]), "about": about}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _entry(folder: Path) -> Entry | None:
    content = _content(folder)
    if content is None:
        return None
    found = _describe(content) or {"row_bytes": 0, "rows": 0, "about": {"kind": "of another version"}}
    rows = size = 0
    try:
        last_used = (folder / ABOUT_FILE).stat().st_mtime
        with os.scandir(folder) as files:
            for file in files:
                size += file.stat().st_size if file.is_file() else 0
                segment = Segment.named(Path(file.path))
                rows += segment.count if segment else 0
    except FileNotFoundError:
        return None  # another process is removing it
    reserved = found["rows"] * (found["row_bytes"] + INDEX_BYTES)
    return Entry(folder.name, found["about"], rows, found["row_bytes"], size, last_used, _in_use(folder), reserved)


def _in_use(folder: Path) -> bool:
    uses = folder / "uses"
    return uses.is_dir() and any(holder(path) is not None for path in uses.iterdir())
