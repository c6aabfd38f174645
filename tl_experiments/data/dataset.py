"""Images as batches: decoded as they are needed, or once into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tl_experiments import interrupt
from tl_experiments.data.batches import Drawn
from tl_experiments.data.items import Source
from tl_experiments.data.originals import decoding_threads
from tl_experiments.data.splits import Indices
from tl_experiments.data.transforms import Transform, sample_seed, seeded
from tl_experiments.errors import DataError
from tl_experiments.types import Batch


class ImageItems(Dataset[Batch]):
    """Images of one split, decoded whenever they are asked for.

    A key is ``(epoch, position, view)``, where the position counts the images of the split, and the view how often the
    epoch has shown the image before. A random transform's result depends on the seed, the epoch, the item and the view
    only: not on the worker, the batch or the order.

    Args:
        source: Where the images come from.
        indices: The split's items in the source, ``(n,)``.
        transform: From an image to uint8 ``(channels, size, size)``.
        seed: Of the transform's randomness.
    """

    def __init__(self, source: Source, indices: Indices, transform: Transform, seed: int) -> None:
        self.source, self.indices, self.transform, self.seed = source, indices, transform, seed

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: tuple[int, int, int]) -> Batch:
        """One image, without the batch dimension.

        Raises:
            DataError: It cannot be decoded.
        """
        epoch, position, view = key
        index = int(self.indices[position])
        with seeded(sample_seed(self.seed, epoch, index, view)):
            image = self.transform(self.source.load(index))
        label = torch.tensor(self.source.items[index].label)
        return {"image": image, "label": label, "index": torch.tensor(index)}

    def __getitems__(self, keys: Sequence[tuple[int, int, int]]) -> Batch | DataError:
        """A whole batch; a DataError is returned, since DataLoader would raise it as another type from a worker."""
        try:
            return _stack([self[key] for key in keys])
        except DataError as error:
            return error


def decode(source: Source, indices: Indices, transform: Transform, view: int | None = None) -> Tensor:
    """Decode and transform items at once, uint8 ``(n, channels, size, size)``.

    Args:
        source: Where the images come from.
        indices: Items in the source, one or more.
        transform: From an image to uint8 ``(channels, size, size)``.
        view: Number of the random view that a random transform shows: a function of it and the item alone.

    Raises:
        DataError: An image cannot be decoded.
        Interrupted: A signal has asked for it.
    """

    def load(index: int) -> Tensor:
        if view is None:
            return transform(source.load(index))
        interrupt.check()
        with seeded(sample_seed(0, 0, index, view)):
            return transform(source.load(index))

    if view is not None:  # a random transform draws from the one generator of the process
        return torch.stack([load(int(index)) for index in indices])
    first = load(int(indices[0]))
    images = torch.empty((len(indices), *first.shape), dtype=torch.uint8)
    images[0] = first

    def fill(position: int) -> None:
        images[position] = load(int(indices[position]))

    with ThreadPoolExecutor(decoding_threads()) as threads:
        for _ in threads.map(fill, range(1, len(indices))):
            interrupt.check()
    return images


class Preloaded:
    """A split held in memory as one uint8 tensor ``(n, channels, size, size)``; making a batch is one indexing.

    Args:
        source: Where the images come from.
        indices: The split's items in the source, ``(n,)``.
        transform: From an image to uint8 ``(channels, size, size)``; not a random one, since each image is made once.

    Raises:
        DataError: An image cannot be decoded.
    """

    def __init__(self, source: Source, indices: Indices, transform: Transform) -> None:
        self.images = decode(source, indices, transform)
        self.labels = torch.tensor([source.items[index].label for index in indices])
        self.indices = torch.from_numpy(indices)

    def batch(self, positions: Indices, pinned: bool = False) -> Batch:
        """The images at these positions of the split, in this order; in pinned memory for a GPU that copies them."""
        chosen = torch.from_numpy(positions)
        image = torch.empty((len(chosen), *self.images.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
        # index_select copies whole images, ten times as fast as indexing with a tensor
        torch.index_select(self.images, 0, chosen, out=image)
        return {"image": image, "label": self.labels[chosen], "index": self.indices[chosen]}


@dataclass(frozen=True)
class Batches:
    """Batches that can be gone through again and counted beforehand.

    Args:
        start: Begins anew.
        length: Number of batches.
    """

    start: Callable[[], Iterator[Batch]]
    length: int

    def __iter__(self) -> Iterator[Batch]:
        return self.start()

    def __len__(self) -> int:
        return self.length


def live_batches(images: ImageItems, plan: Iterable[Drawn], num_workers: int, pinned: bool = False) -> Iterator[Batch]:
    """Decode images as they are needed, in ``num_workers`` processes, or in this one where that is 0.

    Args:
        images: The split.
        plan: What each batch shows.
        num_workers: Changes the speed only.
        pinned: Put the batches into pinned memory, from which a GPU copies without anybody waiting.

    Raises:
        DataError: An image cannot be decoded.
    """
    loader: DataLoader[Batch] = DataLoader(
        images,
        batch_sampler=(_keys(drawn) for drawn in plan),
        collate_fn=_as_it_is,
        num_workers=num_workers,
        pin_memory=pinned,
        # DataLoader draws a seed for its workers; drawn from the global generator it would change dropout
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


def _keys(drawn: Drawn) -> list[tuple[int, int, int]]:
    shown = zip(drawn.positions.tolist(), drawn.views.tolist(), strict=True)
    return [(drawn.epoch, position, view) for position, view in shown]


def _as_it_is(batch: Any) -> Any:
    return batch


def _stack(samples: Sequence[Batch]) -> Batch:
    return {
        "image": torch.stack([sample["image"] for sample in samples]),
        "label": torch.stack([sample["label"] for sample in samples]),
        "index": torch.stack([sample["index"] for sample in samples]),
    }
