"""Decoded images before any transform, held so that each is decoded once and not once an epoch."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tl_experiments import interrupt
from tl_experiments.data.items import Picture, Source
from tl_experiments.data.splits import Indices

DECODING_THREADS = 8  # Pillow decodes and resizes without the GIL


def decoding_threads() -> int:
    """Threads that decode images of one process."""
    return min(DECODING_THREADS, os.cpu_count() or 1)


class Originals:
    """Images of a source as its ``load`` gives them; as many as fit are held.

    Nothing is held of a source that has its images in memory anyway.

    Args:
        source: Where the images come from.
        max_bytes: Of pixels that may be held, 0 or more.

    Attributes:
        decoded: Images that were decoded so far.
    """

    def __init__(self, source: Source, max_bytes: int) -> None:
        self._source, self._room = source, 0 if source.decoded_in_memory else max_bytes
        # Pixels without the fourth byte that Pillow spends on a pixel, and whether they were Pillow's
        self._held: dict[int, tuple[NDArray[np.uint8], bool]] = {}
        self.decoded = 0

    def holds(self, index: int) -> bool:
        """Whether the image has been decoded and kept."""
        return index in self._held

    def load(self, index: int, keep: bool = True) -> Picture:
        """As ``Source.load``, to the bit.

        Args:
            index: Position of the item in the source.
            keep: Hold the image if there is room; a process that ends soon would hold it for nobody.

        Raises:
            DataError: It cannot be decoded.
        """
        if index in self._held:
            pixels, pillows = self._held[index]
            return Image.fromarray(pixels) if pillows else pixels
        picture = self._source.load(index)
        self.decoded += 1
        if keep:
            self._keep(index, picture)
        return picture

    def fill(self, indices: Indices) -> None:
        """Decode those that are not held, ``(n,)``, until there is no more room.

        Raises:
            DataError: One cannot be decoded.
        """
        missing = [index for index in np.unique(indices).tolist() if index not in self._held]
        with ThreadPoolExecutor(decoding_threads()) as threads:
            while missing and self._room > 0:
                interrupt.check()
                piece, missing = missing[:DECODING_THREADS], missing[DECODING_THREADS:]
                for index, picture in zip(piece, threads.map(self._source.load, piece), strict=True):
                    self.decoded += 1
                    self._keep(index, picture)

    def _keep(self, index: int, picture: Picture) -> None:
        pixels = cast(NDArray[np.uint8], np.asarray(picture))
        if pixels.nbytes > self._room:
            self._room = 0  # those that come later would else be looked at one by one for the last gap
            return
        self._room -= pixels.nbytes
        self._held[index] = pixels, isinstance(picture, Image.Image)
