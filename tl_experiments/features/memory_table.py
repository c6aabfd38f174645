"""Rows held by one process, where the store has no room."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

_PIECE_BYTES = 64 << 20  # most that is made at once
_FEWEST_ROWS = 256  # and whole batches of an encoding, however large rows are


class MemoryTable:
    """As ``cache.table.Table``, gone with the process.

    Args:
        row_bytes: Of one row.
    """

    def __init__(self, row_bytes: int) -> None:
        self._items: Indices = np.empty(0, np.int64)
        self._rows: NDArray[np.uint8] = np.empty((0, row_bytes), np.uint8)

    def fill(self, indices: Indices, make: Callable[[Indices], NDArray[np.uint8]]) -> int:
        """Make the rows that are missing, some at a time; returns their number."""
        missing = np.setdiff1d(indices, self._items)
        if missing.size:
            items = np.union1d(self._items, missing)
            rows = np.empty((items.size, self._rows.shape[1]), np.uint8)
            rows[np.searchsorted(items, self._items)] = self._rows
            count = max(_FEWEST_ROWS, _PIECE_BYTES // rows.shape[1] // _FEWEST_ROWS * _FEWEST_ROWS)
            for start in range(0, missing.size, count):
                piece = missing[start : start + count]
                rows[np.searchsorted(items, piece)] = make(piece)
            self._items, self._rows = items, rows
        return int(missing.size)

    def close(self) -> None:
        """Forget the rows."""
        self._items, self._rows = self._items[:0].copy(), self._rows[:0].copy()

    def read(self, indices: Indices, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """``(n, row_bytes)``, put into ``out`` where it is given."""
        return np.take(self._rows, np.searchsorted(self._items, indices), axis=0, out=out, mode="clip")
