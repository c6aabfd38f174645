"""Rows of fixed size by item index, made once over all processes and read from memory maps."""

from __future__ import annotations

import logging
import mmap
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tl_experiments.cache.locks import Held, is_gone, signature, try_hold
from tl_experiments.errors import UserError
from tl_experiments.records import write_atomically

logger = logging.getLogger(__name__)

ABOUT_FILE = "about.json"
Indices = NDArray[np.int64]
Rows = NDArray[np.uint8]

_FIRST_RANGE, _RANGES_A_DOUBLING = 128, 32
_PIECE_BYTES = 64 << 20  # most that is made before it is written
_FEWEST_ROWS = 16  # of a piece, however large they are
_MOST_MAPS = 256  # open at once; each costs a file descriptor
_ORPHANED_S = 600.0  # without a write, after which a temporary of another host is nobody's
_WAIT_S = 0.05
SEGMENT = re.compile(r"(\d+)-(\d+)-[0-9a-f]+\.rows")
_SIGNED = re.compile(r"\..+\.rows\.([0-9a-f]+-\d+-\d+)\.tmp")
_ROW_BITS = 32  # an address is a segment's number and, in its lower bits, a row's


class Table:
    """Rows of ``row_bytes`` bytes by item index, in one folder. ``Store.open`` makes it.

    A file ``<first>-<n>-<token>.rows`` is a segment: n item indices as int64, little-endian, then their n rows. It is
    written under another name first, so it is whole where it is; one of another size is named and its rows are made
    again. A row costs 8 bytes of memory; what is read belongs to the file, and the system may drop it at any time.

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
        self._segments: list[tuple[Path, int]] = []  # with the number of their rows
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
            UserError: The folder cannot be written: the disk is full, for example.
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
        """Write a segment of the range that begins at ``first``, whole or not at all."""
        name = f"{first:010d}-{len(items)}-{secrets.token_hex(6)}.rows"
        temporary = self.folder / f".{name}.{signature()}.tmp"
        if not (self.folder / ABOUT_FILE).exists():  # somebody removed the folder under us
            write_atomically(self.folder / ABOUT_FILE, self._about)
        try:
            with temporary.open("xb") as stream:
                stream.write(items.astype("<i8").data)
                stream.write(np.ascontiguousarray(rows).data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, self.folder / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        with self._lock:
            self._known.add(name)
            self._enter(items, self.folder / name)

    def _addresses(self, indices: Indices) -> Indices:
        if not len(indices) or indices.max() < len(self._address):
            return self._address[indices]
        address = np.full(len(indices), -1, np.int64)
        inside = indices < len(self._address)
        address[inside] = self._address[indices[inside]]
        return address

    def _scan(self) -> None:
        """Take note of segments that came since the last time, and remove temporaries of processes that are gone."""
        with self._lock:
            self._note(_files(self.folder))

    def _note(self, files: Iterable[tuple[str, Callable[[], os.stat_result]]]) -> None:
        for name, status in files:
            if name in self._known:
                continue
            if name.endswith(".tmp"):
                signed = _SIGNED.fullmatch(name)
                with suppress(OSError):
                    if (signed and is_gone(signed[1])) or time.time() - status().st_mtime > _ORPHANED_S:
                        (self.folder / name).unlink()
            if match := SEGMENT.fullmatch(name):
                self._known.add(name)
                first, count = int(match[1]), int(match[2])
                items = self._items(self.folder / name, first, count)
                if items is not None:
                    self._enter(items, self.folder / name)

    def _items(self, path: Path, first: int, count: int) -> Indices | None:
        """Item indices of a segment, or None where it is damaged or was removed."""
        expected = count * (8 + self.row_bytes)
        try:
            with path.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                items = np.frombuffer(stream.read(8 * count), "<i8") if size == expected else None
        except FileNotFoundError:
            return None
        end = range_end(first)
        if items is not None and len(items) and items.min() >= first and items.max() < end:
            return items.astype(np.int64)
        logger.warning("%s is damaged (%d bytes, expected %d): its rows are made again", path, size, expected)
        with suppress(OSError):
            path.unlink()
        return None

    def _enter(self, items: Indices, path: Path) -> None:
        if (longer := int(items.max()) + 1) > len(self._address):
            address = np.full(max(longer, len(self._address) * 5 // 4), -1, np.int64)
            address[: len(self._address)] = self._address
            self._address = address
        self._address[items] = (len(self._segments) << _ROW_BITS) + np.arange(len(items))
        self._segments.append((path, len(items)))
        if len(self._maps) < _MOST_MAPS:
            self._map(len(self._segments) - 1)  # a file that is mapped may be removed by others

    def _map(self, number: int) -> Rows:
        if (found := self._maps.get(number)) is not None:
            return found
        path, count = self._segments[number]
        with path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        rows = np.frombuffer(mapped, np.uint8, offset=8 * count).reshape(count, self.row_bytes)
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
        UserError: A table's folder cannot be written.
    """
    made, left = 0, list(_ranges(_missing(tables, np.unique(indices))))
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
            time.sleep(_WAIT_S)
        left = [(first, rest) for first, items in others if len(rest := _missing(tables, items))]
    with suppress(OSError):
        locks.rmdir()  # unless others are at work
    return made


def range_end(first: int) -> int:
    """Where the range of items that begins at ``first`` ends.

    Ranges are 128 items long up to 8,192, and then twice as long with each doubling of the index: a small dataset is
    shared out among processes, and one of a million images does not become thousands of files.
    """
    size = _FIRST_RANGE
    while first >= 2 * size * _RANGES_A_DOUBLING:
        size *= 2
    return (first // size + 1) * size


def _ranges(items: Indices) -> Iterator[tuple[int, Indices]]:
    """Cut rising items at the ranges' ends; each with the start of its range."""
    done, first = 0, 0
    while done < len(items):
        end = range_end(first)
        while end <= items[done]:
            first, end = end, range_end(end)
        until = int(np.searchsorted(items, end))
        yield first, items[done:until]
        done = until


def _missing(tables: Sequence[Table], items: Indices) -> Indices:
    return np.unique(np.concatenate([items[:0], *(table.missing(items) for table in tables)]))


def _fill_range(tables: Sequence[Table], first: int, items: Indices, make: Callable[[Indices], Sequence[Rows]]) -> int:
    missing = _missing(tables, items)
    count = max(_FEWEST_ROWS, _PIECE_BYTES // sum(table.row_bytes for table in tables))
    for start in range(0, len(missing), count):
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
    return UserError(str(folder), f"cannot be written ({error.strerror})", fix)


def _files(folder: Path) -> list[tuple[str, Callable[[], os.stat_result]]]:
    try:
        with os.scandir(folder) as entries:
            return [(entry.name, entry.stat) for entry in entries]
    except FileNotFoundError:
        return []
