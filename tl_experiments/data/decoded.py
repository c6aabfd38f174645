"""Decoded images on disk: each decoded once for all image sizes of a sweep, over all its processes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL
import torch
from PIL import features
from torch import Tensor

from tl_experiments import interrupt
from tl_experiments.cache.segments import Indices, Rows
from tl_experiments.cache.store import Store, key_of
from tl_experiments.cache.table import Table, fill_together
from tl_experiments.data.items import Source
from tl_experiments.data.originals import decoding_threads
from tl_experiments.data.transforms import Geometry, eval_transform
from tl_experiments.types import Batch

# Of decode.py, eval_transform and the rows' layout: another number is another table.
_VERSION = 1


class DecodedImages:
    """Images of a source as ``eval_transform`` makes them, in a table for each geometry.

    Nothing is kept of a source that holds its images in memory, nor of a geometry whose table has no room: for these
    ``holds`` says no.

    Args:
        source: Where the images come from. Other contents, under the same names too, are other tables.
        geometries: All that runs with this source need; whoever decodes an image first makes it for all of them. Those
            named first find room first.
        channels: Of the images.
        store: Where the tables are.
        rows: How many of the source's images may be asked for; None is all.

    Attributes:
        decoded: Images decoded by this process.
    """

    def __init__(
        self, source: Source, geometries: Sequence[Geometry], channels: int, store: Store, rows: int | None = None
    ) -> None:
        self.source, self.channels, self.decoded = source, channels, 0
        self._tables: dict[Geometry, Table] = {}
        if source.decoded_in_memory:
            return
        libraries = f"{PIL.__version__} {features.version('libjpeg_turbo')} {features.version('webp')}"
        ingredients = {
            "source": source.fingerprint,
            "channels": str(channels),
            "version": str(_VERSION),
            "libraries": libraries,
        }
        self._locks = store.locks(key_of("decoding", ingredients))
        for geometry in dict.fromkeys(geometries):
            key = key_of("decoded", {**ingredients, "geometry": repr(geometry)})
            row_bytes = channels * geometry.image_size**2
            about = {"kind": "decoded", "images": f"{geometry.image_size} px", "data": source.fingerprint[:12]}
            table = store.open(key, row_bytes, len(source.items) if rows is None else rows, about)
            if table is not None:
                self._tables[geometry] = table

    def holds(self, geometry: Geometry) -> bool:
        """Whether ``batch`` can be asked for this geometry."""
        return geometry in self._tables

    def fill(self, indices: Indices) -> int:
        """Decode what is missing of these items, ``(n,)``, for all geometries; returns how many were decoded here.

        Raises:
            DataError: An image cannot be decoded.
            UserError: The store cannot be written.
        """
        before = self.decoded
        fill_together(list(self._tables.values()), indices, self._make, self._locks)
        return self.decoded - before

    def batch(self, indices: Indices, geometry: Geometry, pinned: bool = False) -> Tensor:
        """Images of these items, ``(n,)``, in this order: uint8 ``(n, channels, size, size)``.

        Pinned memory is for a GPU that copies them.

        Raises:
            DataError: One that is missing cannot be decoded.
            UserError: One is missing, and the store cannot be written.
        """
        table, size = self._tables[geometry], geometry.image_size
        images = torch.empty((len(indices), self.channels, size, size), dtype=torch.uint8, pin_memory=pinned)
        out = images.numpy().reshape(len(indices), table.row_bytes)
        try:
            table.read(indices, out)
        except LookupError:
            self.fill(indices)
            table.read(indices, out)
        return images

    def _make(self, items: Indices) -> list[Rows]:
        rows = [np.empty((len(items), table.row_bytes), np.uint8) for table in self._tables.values()]

        def decode(position: int) -> None:
            image = self.source.load(int(items[position]))
            for geometry, made in zip(self._tables, rows, strict=True):
                made[position] = eval_transform(image, geometry).numpy().ravel()

        with ThreadPoolExecutor(decoding_threads()) as threads:
            for _ in threads.map(decode, range(len(items))):
                interrupt.check()
        self.decoded += len(items)
        return rows


class Shared:
    """A split whose images are taken from a table; what is missing of it is decoded at once.

    Args:
        images: Of the split's source.
        geometry: Of the images; one that ``images`` holds.
        indices: The split's items in the source, ``(n,)``.

    Attributes:
        decoded: How many were decoded by this process for it.

    Raises:
        DataError: An image cannot be decoded.
    """

    def __init__(self, images: DecodedImages, geometry: Geometry, indices: Indices) -> None:
        self._images, self._geometry, self._indices = images, geometry, indices
        self._labels = torch.tensor([images.source.items[index].label for index in indices])
        self.decoded = images.fill(indices)

    def batch(self, positions: Indices, pinned: bool = False) -> Batch:
        """The images at these positions of the split, in this order; in pinned memory for a GPU that copies them."""
        chosen = self._indices[positions]
        image = self._images.batch(chosen, self._geometry, pinned)
        return {"image": image, "label": self._labels[torch.from_numpy(positions)], "index": torch.from_numpy(chosen)}
