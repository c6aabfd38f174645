"""What crosses the cut, for the items of one dataset: encoded once, then read."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tl_experiments import interrupt
from tl_experiments.cache.table import Table
from tl_experiments.features.memory_table import MemoryTable
from tl_experiments.features.rows import Column, from_rows, row_bytes, to_rows

Indices = NDArray[np.int64]
Images = Callable[[Indices], Tensor]
Prefix = Callable[[Tensor], tuple[Tensor, ...]]

# Every batch of an encoding has this many images, the last filled up with zeros: a row does then not depend on
# which other rows were missing, so that a killed run that goes on ends to the bit like one that was not.
ENCODING_BATCH = 32


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
        hold_bytes: Rows of no more than this are held in the device's memory; more are read from the memory map.
        encoded: Images that this process has put through the prefix.
    """

    table: Table | MemoryTable
    columns: tuple[Column, ...]
    prefix: Prefix
    images: Images
    precision: Callable[[], AbstractContextManager[object]]
    device: torch.device
    hold_bytes: int
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
        fits = items.size * row_bytes(self.columns) <= self.hold_bytes
        self._held = torch.from_numpy(self.table.read(items)).to(self.device) if fits else None

    def batch(self, indices: Indices) -> tuple[Tensor, ...]:
        """``(n, ...)`` each, on the device, of items that ``ensure`` was called with."""
        if self._held is not None:
            rows = self._held.index_select(0, torch.from_numpy(np.searchsorted(self._items, indices)).to(self.device))
        else:
            rows = to_device(torch.from_numpy(self.table.read(indices)), self.device)
        return from_rows(rows, self.columns)

    def _encode(self, indices: Indices) -> NDArray[np.uint8]:
        rows = []
        with torch.no_grad(), self.precision():
            for part in self.images(indices).split(ENCODING_BATCH):
                interrupt.check()
                n = len(part)
                padding = part.new_zeros(ENCODING_BATCH - n, *part.shape[1:])
                images = to_device(torch.cat([part, padding]) if n < ENCODING_BATCH else part, self.device)
                rows.append(to_rows(self.prefix(images), self.columns)[:n])
        return np.concatenate(rows)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Without waiting where the device is a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
