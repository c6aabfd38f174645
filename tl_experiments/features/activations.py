"""What crosses the cut, for the items of one dataset: encoded once, then read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tl_experiments import interrupt
from tl_experiments.cache.table import Table
from tl_experiments.data.device import Room, empty, to_device
from tl_experiments.features.encoding import Prefix, encoding_batch
from tl_experiments.features.memory_table import MemoryTable
from tl_experiments.features.rows import Column, from_rows, row_bytes, to_rows

Indices = NDArray[np.int64]
Images = Callable[[Indices], Tensor]

_PIECE_BYTES = 64 << 20  # on the way to the device at once
_IMAGE_BATCHES = 4  # of images that are asked for at once: all that are missing may not fit into memory


@dataclass
class Activations:
    """Rows of one table, filled as they are asked for.

    Args:
        table: Of what is kept.
        columns: Of its rows.
        prefix: uint8 images to what crosses the cut.
        images: Items to uint8 images, as the table's transform makes them.
        precision: Context of the prefix, such as autocast.
        device: Of the prefix, and where batches go.
        room: In the device's memory, for the rows; those that do not fit are read from the table.
        encoded: Images that this process has put through the prefix.
    """

    table: Table | MemoryTable
    columns: tuple[Column, ...]
    prefix: Prefix
    images: Images
    precision: Callable[[], AbstractContextManager[object]]
    device: torch.device
    room: Room
    encoded: int = 0
    _held: Tensor | None = field(default=None, repr=False)
    _items: Indices = field(default_factory=lambda: np.empty(0, np.int64), repr=False)

    def ensure(self, indices: Indices) -> None:
        """Encode those of the items that nobody has encoded yet, and hold all that were asked for, if they fit."""
        self.encoded += self.table.fill(np.unique(indices), self._encode)
        items = np.union1d(self._items, indices)
        if items.size == self._items.size:
            return
        self._items = items
        self._let_go()
        self._held = self._hold(items) if self.room.take(items.size * row_bytes(self.columns)) else None

    def close(self) -> None:
        """Let go of all rows: nothing is asked for any more."""
        self._let_go()
        self.table.close()

    def _let_go(self) -> None:
        if self._held is not None:
            self.room.left += self._held.numel()
        self._held = None

    def batch(self, indices: Indices) -> tuple[Tensor, ...]:
        """``(n, ...)`` each, on the device, of items that ``ensure`` was called with."""
        if self._held is not None:
            places = torch.from_numpy(np.searchsorted(self._items, indices))
            rows = self._held.index_select(0, to_device(places, self.device))
        else:
            rows = self._read(indices)
        return from_rows(rows, self.columns)

    def _read(self, indices: Indices) -> Tensor:
        """Rows of the table on the device, ``(n, row_bytes)``, copied there without waiting."""
        rows = empty((len(indices), row_bytes(self.columns)), self.device)
        self.table.read(indices, rows.numpy())
        return to_device(rows, self.device)

    def _hold(self, items: Indices) -> Tensor:
        """All at once on a CPU; in pieces to a GPU, whose memory may be larger than what the CPU has to spare."""
        if self.device.type == "cpu":
            return self._read(items)
        size = row_bytes(self.columns)
        held = torch.empty(len(items), size, dtype=torch.uint8, device=self.device)
        count = max(1, _PIECE_BYTES // size)
        for start in range(0, len(items), count):
            held[start : start + count] = self._read(items[start : start + count])
        return held

    def _encode(self, indices: Indices) -> NDArray[np.uint8]:
        batch, found = encoding_batch(self.device), []
        with torch.no_grad(), self.precision():
            for part in self._image_batches(indices, batch):
                n = len(part)
                padding = part.new_zeros(batch - n, *part.shape[1:])
                images = to_device(torch.cat([part, padding]) if n < batch else part, self.device)
                found.append(tuple(tensor[:n] for tensor in self.prefix(images)))
        # Only now: reading from a GPU waits for it
        return np.concatenate([to_rows(activations, self.columns) for activations in found])

    def _image_batches(self, indices: Indices, batch: int) -> Iterator[Tensor]:
        """``batch`` images each, the last perhaps fewer; a signal that has come ends it."""
        count = _IMAGE_BATCHES * batch
        for start in range(0, len(indices), count):
            interrupt.check()
            for part in self.images(indices[start : start + count]).split(batch):
                interrupt.check()
                yield part
