"""Images in the memory of a GPU, and their augmentation there.

Everything here works on any device, so that it is tested on the CPU; a run takes it on a GPU alone.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from tl_experiments.data.items import Picture, Source
from tl_experiments.data.originals import decoding_threads
from tl_experiments.data.splits import Indices
from tl_experiments.data.transforms import seeded
from tl_experiments.types import Batch

_PIECE_BYTES = 64 << 20  # on the way to the device at once


@dataclass
class Room:
    """Bytes that may still be taken."""

    left: int

    def take(self, size: int) -> bool:
        """Whether ``size`` bytes were there; they are gone then."""
        if size > self.left:
            return False
        self.left -= size
        return True


def empty(shape: Sequence[int], device: torch.device) -> Tensor:
    """uint8 memory of the CPU to be filled and copied to ``device`` without waiting.

    Where that is a GPU, torch keeps such memory and gives it out again once the copies from it are done.
    """
    return torch.empty(*shape, dtype=torch.uint8, pin_memory=device.type == "cuda")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Without waiting where the device is a GPU."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


def as_tensor(picture: Picture) -> Tensor:
    """uint8 ``(channels, height, width)``."""
    if isinstance(picture, Image.Image):
        return v2.functional.pil_to_tensor(picture)
    return torch.from_numpy(picture.transpose(2, 0, 1).copy())


def augmented(images: Sequence[Tensor], transform: Callable[[Tensor], Tensor], seeds: Sequence[int]) -> Tensor:
    """Transform each image on its device; what is random about it follows its own seed alone.

    Args:
        images: uint8 ``(channels, height, width)`` of any size, one or more.
        transform: To uint8 ``(channels, size, size)``; draws from torch's CPU generator.
        seeds: One an image.

    Returns:
        uint8 ``(n, channels, size, size)``.
    """
    made = []
    with seeded(0):
        for image, seed in zip(images, seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            made.append(transform(image))
    return torch.stack(made)


class HeldSplit:
    """A split in the memory of a device; making a batch is one indexing there.

    Args:
        batch: Positions in the split, ``(k,)``, to their images, labels and items on the CPU.
        n: Images of the split, 1 or more.
        device: Where they are held.
    """

    def __init__(self, batch: Callable[[Indices], Batch], n: int, device: torch.device) -> None:
        self._device = device
        first = batch(np.arange(1))["image"]
        self._images = torch.empty(n, *first.shape[1:], dtype=torch.uint8, device=device)
        labels, items = [], []
        count = max(1, _PIECE_BYTES // first.nbytes)
        for start in range(0, n, count):
            piece = batch(np.arange(start, min(n, start + count)))
            self._images[start : start + count] = to_device(piece["image"], device)
            labels.append(piece["label"])
            items.append(piece["index"])
        self._labels, self._items = torch.cat(labels).to(device), torch.cat(items).to(device)

    def batch(self, positions: Indices) -> Batch:
        """The images at these positions of the split, in this order, on the device."""
        chosen = to_device(torch.from_numpy(positions), self._device)
        return {
            "image": self._images.index_select(0, chosen),
            "label": self._labels.index_select(0, chosen),
            "index": self._items.index_select(0, chosen),
        }


class DeviceOriginals:
    """Decoded images of any size on a device; each is decoded once as far as they find room.

    Args:
        source: Where the images come from.
        device: Where they are wanted.
        room: In the device's memory.
        memory: In the CPU's, for those that have no room there.

    Attributes:
        decoded: Images that were decoded so far.
    """

    def __init__(self, source: Source, device: torch.device, room: Room, memory: Room) -> None:
        self._source, self._device, self._room, self._memory = source, device, room, memory
        self._kept: dict[int, Tensor] = {}
        self.decoded = 0

    def batches(self, plan: Iterable[Indices]) -> Generator[list[Tensor], None, None]:
        """Images of each of the plan's batches of items, uint8 ``(channels, height, width)`` each, on the device.

        The next batch is decoded while the last one is worked on.

        Raises:
            DataError: One cannot be decoded.
        """
        threads = ThreadPoolExecutor(decoding_threads())
        coming: dict[int, Future[Tensor]] = {}
        waiting: list[int] | None = None
        try:
            for items in plan:
                batch = items.tolist()
                for index in batch:
                    if index not in self._kept and index not in coming:
                        coming[index] = threads.submit(self._decode, index)
                if waiting is not None:
                    yield [self._take(index, coming) for index in waiting]
                waiting = batch
            if waiting is not None:
                yield [self._take(index, coming) for index in waiting]
        finally:
            threads.shutdown(cancel_futures=True)

    def _take(self, index: int, coming: dict[int, Future[Tensor]]) -> Tensor:
        if index in self._kept:
            return to_device(self._kept[index], self._device)
        future = coming.pop(index, None)
        image = self._decode(index) if future is None else future.result()
        self.decoded += 1
        there = to_device(image, self._device)
        if self._room.take(image.nbytes):
            self._kept[index] = there
        elif self._memory.take(1 << (image.nbytes - 1).bit_length()):  # torch pins powers of two
            self._kept[index] = image
        return there

    def _decode(self, index: int) -> Tensor:
        image = as_tensor(self._source.load(index))
        return image.pin_memory() if self._device.type == "cuda" else image
