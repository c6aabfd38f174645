"""Rows of fixed size by item index, made once over all processes and read from memory maps."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from tl_experiments import interrupt
from tl_experiments.cache.locks import Held, try_hold
from tl_experiments.cache.segments import Indices, Rows, Segment, new_segments, ranges, write_segment
from tl_experiments.errors import StorageError, UserError
from tl_experiments.records import write_atomically

ABOUT_FILE = "about.json"
_PIECE_BYTES = 64 << 20  # most that is made before it is written
_FEWEST_ROWS = 16  # of a piece, however large they are
_MOST_MAPS = 256  # open at once; each costs a file descriptor
_WAIT_S = 0.05
_ROW_BITS = 32  # an address is a segment's number and, in its lower bits, a row's


class Table:
    """Rows of ``row_bytes`` bytes by item index, in one folder. ``Store.open`` makes it.

    A row costs 8 bytes of memory; what is read is pages of files, which the system may drop at any time. A damaged file
    is named, and its rows are made again.

    Args:
        folder: Of the table.
        row_bytes: Bytes of a row.
        about: Content of the file that describes it.
        used: Says to other processes that this one uses the table.
    """

    def __init__(self, folder: Path, row_bytes: int, about: str, used: Held | None = None) -> None:
        self.folder, self.row_bytes = folder, row_bytes
        self._about, self._used = about, used
        self._address = np.full(0, -1, np.int64)
        self._segments: list[Segment] = []
        self._known: set[str] = set()
        self._maps: dict[int, Rows] = {}
        self._lock = threading.RLock()  # batches may be read ahead by another thread

    def missing(self, indices: Indices) -> Indices:
        """Those of the items, in order and each once, whose rows no process has made."""
        self._scan()
        wanted = np.unique(indices)
        return wanted[self._addresses(wanted) < 0]

    def fill(self, indices: Indices, make: Callable[[Indices], Rows]) -> int:
        """Make the rows that are missing, each once over all processes; returns when all are there.

        Args:
            indices: Of items, ``(n,)``, 0 or more, in any order.
            make: Item indices, ``(k,)``, rising -> their rows, ``(k, row_bytes)``. Called for one range of items at
                a time. What it raises is passed on: rows of earlier calls stay.

        Returns:
            Number of rows made by this process.

        Raises:
            StorageError: The disk is full.
            UserError: The folder cannot be written.
            Interrupted: A signal has asked for it; what is written stays.
        """
        return fill_together([self], indices, lambda items: [make(items)], self.folder / "locks")

    def read(self, indices: Indices, out: Rows | None = None) -> Rows:
        """Rows of these items, in this order, ``(n, row_bytes)``.

        Args:
            indices: Of items whose rows are there, ``(n,)``; one may stand more than once.
            out: Where to put them, ``(n, row_bytes)``, contiguous.

        Raises:
            LookupError: A row is not there.
        """
        address = self._addresses(indices)
        if (address < 0).any():
            self._scan()
            address = self._addresses(indices)
            if (address < 0).any():
                raise LookupError(f"{self.folder}: no row of item {indices[address < 0][0]}")
        if out is None:
            out = np.empty((len(indices), self.row_bytes), np.uint8)
        assert out.shape == (len(indices), self.row_bytes), (out.shape, len(indices), self.row_bytes)
        if not len(indices):
            return out
        segment, row = address >> _ROW_BITS, address & ((1 << _ROW_BITS) - 1)
        if (segment == segment[0]).all():
            return np.take(self._map(int(segment[0])), row, axis=0, out=out, mode="clip")  # "raise" would buffer out
        starts = np.flatnonzero(np.diff(address, prepend=-2) != 1)  # of runs of neighbours in one file
        ends = np.append(starts[1:], len(indices))
        maps = {number: self._map(number) for number in np.unique(segment).tolist()[:_MOST_MAPS]}
        runs = zip(starts.tolist(), ends.tolist(), segment[starts].tolist(), row[starts].tolist(), strict=True)
        for start, end, number, first in runs:
            source = maps[number] if number in maps else self._map(number)
            out[start:end] = source[first : first + end - start]
        return out

    def close(self) -> None:
        """Let other processes remove the table."""
        self._maps.clear()
        if self._used is not None:
            self._used.release()

    def add(self, first: int, items: Indices, rows: Rows) -> None:
        """Write rows of the range that begins at ``first``; raises OSError where they cannot be."""
        if not (self.folder / ABOUT_FILE).exists():  # somebody removed the folder under us
            write_atomically(self.folder / ABOUT_FILE, self._about)
        segment = write_segment(self.folder, first, items, rows)
        with self._lock:
            self._enter(segment, items)

    def _addresses(self, indices: Indices) -> Indices:
        if not len(indices) or indices.max() < len(self._address):
            return self._address[indices]
        address = np.full(len(indices), -1, np.int64)
        inside = indices < len(self._address)
        address[inside] = self._address[indices[inside]]
        return address

    def _scan(self) -> None:
        """Take note of segments that came since the last time."""
        with self._lock:
            for segment in new_segments(self.folder, self._known):
                self._enter(segment, segment.items(self.row_bytes))

    def _enter(self, segment: Segment, items: Indices | None) -> None:
        self._known.add(segment.path.name)
        if items is None:
            return
        if (longer := int(items.max()) + 1) > len(self._address):
            address = np.full(max(longer, len(self._address) * 5 // 4), -1, np.int64)
            address[: len(self._address)] = self._address
            self._address = address
        number = len(self._segments)
        self._segments.append(segment)
        if len(self._maps) < _MOST_MAPS:
            try:
                self._map(number)  # at once: a file that is mapped may be removed by others
            except FileNotFoundError:
                return  # as this one was just now
        self._address[items] = (number << _ROW_BITS) + np.arange(len(items))

    def _map(self, number: int) -> Rows:
        if (found := self._maps.get(number)) is not None:
            return found
        rows = self._segments[number].map(self.row_bytes)
        with self._lock:
            while len(self._maps) >= _MOST_MAPS:
                del self._maps[next(iter(self._maps))]
            self._maps[number] = rows
        return rows


def fill_together(
    tables: Sequence[Table],
    indices: Indices,
    make: Callable[[Indices], Sequence[Rows]],
    locks: Path,
) -> int:
    """Fill several tables with one ``make``, for example one decoding of an image for several sizes.

    Args:
        tables: In the order of what ``make`` returns.
        indices: Of items, ``(n,)``, 0 or more, in any order.
        make: Item indices, ``(k,)``, rising -> rows for each table, ``(k, row_bytes)``. Called for items that are
            missing in any of the tables; rows that a table has already are dropped.
        locks: Folder of the locks; the same for all whose ``make`` costs should be shared.

    Returns:
        Number of items that this process made.

    Raises:
        StorageError: The disk is full.
        UserError: A table's folder cannot be written.
        Interrupted: A signal has asked for it; what is written stays.
    """
    made, left = 0, list(ranges(_missing(tables, np.unique(indices))))
    while left:
        others = []
        for first, items in left:
            held = _hold(locks, first)
            if held is None:
                others.append((first, items))
                continue
            with held:
                made += _fill_range(tables, first, items, make)
        if len(others) == len(left):
            interrupt.check()
            time.sleep(_WAIT_S)
        left = [(first, rest) for first, items in others if len(rest := _missing(tables, items))]
    with suppress(OSError):
        locks.rmdir()  # unless others are at work
    return made


def _missing(tables: Sequence[Table], items: Indices) -> Indices:
    return np.unique(np.concatenate([items[:0], *(table.missing(items) for table in tables)]))


def _fill_range(tables: Sequence[Table], first: int, items: Indices, make: Callable[[Indices], Sequence[Rows]]) -> int:
    missing = _missing(tables, items)
    count = max(_FEWEST_ROWS, _PIECE_BYTES // sum(table.row_bytes for table in tables))
    for start in range(0, len(missing), count):
        interrupt.check()
        piece = missing[start : start + count]
        made = make(piece)
        for table, rows in zip(tables, made, strict=True):
            assert rows.shape == (len(piece), table.row_bytes), (rows.shape, len(piece), table.row_bytes)
            assert rows.dtype == np.uint8, rows.dtype
            absent = np.isin(piece, table.missing(piece))
            if absent.any():
                _write(table, first, piece[absent], rows if absent.all() else rows[absent])
    return len(missing)


def _write(table: Table, first: int, items: Indices, rows: Rows) -> None:
    try:
        table.add(first, items, rows)
    except OSError as error:
        raise _not_written(table.folder, error) from error


def _hold(locks: Path, first: int) -> Held | None:
    try:
        return try_hold(locks / f"{first:010d}.lock")
    except OSError as error:
        raise _not_written(locks, error) from error


def _not_written(folder: Path, error: OSError) -> UserError:
    fix = "free some space (tl cache clear), or feature_cache.dir= on another disk"
    kind = StorageError if error.errno in (errno.ENOSPC, errno.EDQUOT) else UserError
    return kind(str(folder), f"cannot be written ({error.strerror})", fix)
