"""The files of a table: segments, whole where they are, and the ranges of items that they belong to.

A file ``<first>-<n>-<token>.rows`` holds n item indices as int64, little-endian, then their n rows.
"""

from __future__ import annotations

import logging
import mmap
import os
import re
import secrets
import time
from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tl_experiments.cache.locks import is_gone, signature

logger = logging.getLogger(__name__)

Indices = NDArray[np.int64]
Rows = NDArray[np.uint8]

INDEX_BYTES = 8
_FIRST_RANGE, _RANGES_A_DOUBLING = 128, 32
_ORPHANED_S = 600.0  # without a write, after which a temporary of another host is nobody's
_NAME = re.compile(r"(\d+)-(\d+)-[0-9a-f]+\.rows")
_SIGNED = re.compile(r"\..+\.rows\.([0-9a-f]+-\d+-\d+)\.tmp")


@dataclass(frozen=True)
class Segment:
    """One file of rows.

    Args:
        path: Of the file.
        first: Where its range of items begins.
        count: Number of its rows.
    """

    path: Path
    first: int
    count: int

    @classmethod
    def named(cls, path: Path) -> Segment | None:
        """What the file's name says, or None where it is no segment's."""
        match = _NAME.fullmatch(path.name)
        return cls(path, int(match[1]), int(match[2])) if match else None

    def items(self, row_bytes: int) -> Indices | None:
        """Its item indices, or None where it was removed, or is damaged: then it is named and removed."""
        expected = self.count * (INDEX_BYTES + row_bytes)
        try:
            with self.path.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                found = stream.read(INDEX_BYTES * self.count) if size == expected else b""
        except FileNotFoundError:
            return None
        items = np.frombuffer(found, "<i8").astype(np.int64)
        if items.size and items.min() >= self.first and items.max() < range_end(self.first):
            return items
        logger.warning("%s is damaged (%d bytes, expected %d): its rows are made again", self.path, size, expected)
        with suppress(OSError):
            self.path.unlink()
        return None

    def map(self, row_bytes: int) -> Rows:
        """Its rows, ``(count, row_bytes)``, as pages of the file; they stay readable when the file is removed."""
        with self.path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, np.uint8, offset=INDEX_BYTES * self.count).reshape(self.count, row_bytes)


def write_segment(folder: Path, first: int, items: Indices, rows: Rows) -> Segment:
    """Write rows of the range that begins at ``first``, whole or not at all.

    Args:
        folder: Of the table.
        first: Start of the range.
        items: Indices of the rows, ``(n,)``.
        rows: ``(n, row_bytes)``.

    Raises:
        OSError: The disk is full, for example.
    """
    name = f"{first:010d}-{len(items)}-{secrets.token_hex(6)}.rows"
    temporary = folder / f".{name}.{signature()}.tmp"
    try:
        with temporary.open("xb") as stream:
            stream.write(items.astype("<i8").data)
            stream.write(np.ascontiguousarray(rows).data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, folder / name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return Segment(folder / name, first, len(items))


def new_segments(folder: Path, known: Container[str]) -> list[Segment]:
    """Segments whose names are not known yet; on the way, temporaries of processes that are gone are removed."""
    try:
        with os.scandir(folder) as entries:
            unknown = [entry for entry in entries if entry.name not in known]
    except FileNotFoundError:
        return []
    for entry in unknown:
        if entry.name.endswith(".tmp"):
            signed = _SIGNED.fullmatch(entry.name)
            with suppress(OSError):
                if (signed and is_gone(signed[1])) or time.time() - entry.stat().st_mtime > _ORPHANED_S:
                    os.unlink(entry)
    return [segment for entry in unknown if (segment := Segment.named(Path(entry.path))) is not None]


def range_end(first: int) -> int:
    """Where the range of items that begins at ``first`` ends.

    Ranges are 128 items long up to 8,192, and then twice as long with each doubling of the index: a small dataset is
    shared out among processes, and one of a million images does not become thousands of files.
    """
    size = _FIRST_RANGE
    while first >= 2 * size * _RANGES_A_DOUBLING:
        size *= 2
    return (first // size + 1) * size


def ranges(items: Indices) -> Iterator[tuple[int, Indices]]:
    """Cut rising items at the ranges' ends; each with the start of its range."""
    done, first = 0, 0
    while done < len(items):
        end = range_end(first)
        while end <= items[done]:
            first, end = end, range_end(end)
        until = int(np.searchsorted(items, end))
        yield first, items[done:until]
        done = until
