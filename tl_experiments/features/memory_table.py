"""Rows held by one process, where the store has no room."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


class MemoryTable:
    """As ``cache.table.Table``, gone with the process.

    Args:
        row_bytes: Of one row.
    """

    def __init__(self, row_bytes: int) -> None:
        self._items: Indices = np.empty(0, np.int64)
        self._rows: NDArray[np.uint8] = np.empty((0, row_bytes), np.uint8)

    def fill(self, indices: Indices, make: Callable[[Indices], NDArray[np.uint8]]) -> int:
        """Make the rows that are missing; returns their number."""
        missing = np.setdiff1d(indices, self._items)
        if missing.size:
            items = np.concatenate([self._items, missing])
            order = np.argsort(items)
            self._rows = np.concatenate([self._rows, make(missing)])[order]
            self._items = items[order]
        return int(missing.size)

    def read(self, indices: Indices, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """``(n, row_bytes)``, put into ``out`` where it is given."""
        return np.take(self._rows, np.searchsorted(self._items, indices), axis=0, out=out, mode="clip")
