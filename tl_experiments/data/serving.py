"""How the images of a dataset become batches on a device: decoded once wherever they find room."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tl_experiments.config.augmentations import Augmentation, NoAugmentation
from tl_experiments.data.batches import Drawn
from tl_experiments.data.dataset import ImageItems, Preloaded, decode, live_batches
from tl_experiments.data.decoded import DecodedImages, Shared
from tl_experiments.data.device import DeviceOriginals, HeldSplit, Room, augmented, to_device
from tl_experiments.data.items import Source, Split
from tl_experiments.data.originals import Originals
from tl_experiments.data.splits import Indices
from tl_experiments.data.transforms import Geometry, Transform, sample_seed, tensor_transform, train_transform
from tl_experiments.types import Batch

_PLAIN = NoAugmentation(name="none")
Plan = Iterable[Drawn]


class Serving:
    """Makes the batches of one dataset for one backbone.

    A split of images as they are is held whole if it fits, else made anew in every epoch. Of augmented images the
    originals are held, as many as fit. After ``serve`` both are held on its device, if they fit there, and images are
    augmented there, which rounds in its own way: the same way wherever they are held.

    Args:
        source: Where the images come from.
        decoded: Images that runs share; None where this geometry is not among them.
        geometry: Of the batches.
        channels: Likewise.
        num_workers: Processes that decode images which are not held.
        max_bytes: That a split, or the originals, may take of the CPU's memory.

    Attributes:
        images_decoded: Images decoded so far.
    """

    def __init__(
        self,
        source: Source,
        decoded: DecodedImages | None,
        geometry: Geometry,
        channels: int,
        num_workers: int,
        max_bytes: int,
    ) -> None:
        self._source, self._decoded, self._geometry, self._channels = source, decoded, geometry, channels
        self._num_workers, self._max_bytes = num_workers, max_bytes
        self._held: dict[Split, Preloaded | Shared | HeldSplit] = {}
        self._originals = Originals(source, max_bytes)
        self._device: torch.device | None = None
        self._room = Room(0)
        self._on_device: DeviceOriginals | None = None
        self.images_decoded = 0

    def serve(self, device: torch.device, hold_bytes: int) -> None:
        """Give batches on ``device`` from now on, of whose memory images may take ``hold_bytes``; call it once."""
        self._device, self._room = device, Room(hold_bytes)
        self._on_device = DeviceOriginals(self._source, device, self._room, Room(self._max_bytes))

    def images(self, items: Indices, augmentation: Augmentation, view: int | None) -> Tensor:
        """Decoded and transformed on the CPU, uint8 ``(n, channels, size, size)``; see ``decode``."""
        transform = train_transform(augmentation, self._geometry)
        if view is None and self._decoded is not None:
            before = self._decoded.decoded
            images = self._decoded.batch(items, self._geometry)
            self.images_decoded += self._decoded.decoded - before
            return images
        if view is None:
            self.images_decoded += items.size
            return decode(self._source, items, transform)
        before = self._originals.decoded
        images = decode(replace(self._source, load=self._originals.load), items, transform, view)
        self.images_decoded += self._originals.decoded - before
        return images

    def batches(
        self, split: Split, indices: Indices, augmentation: Augmentation, seed: int, plan: Plan
    ) -> Iterator[Batch]:
        """The batches of a plan.

        Args:
            split: What it is called.
            indices: Its items, ``(n,)``.
            augmentation: Of the images.
            seed: Of its randomness.
            plan: What of the split each batch shows.
        """
        device_transform = tensor_transform(augmentation, self._geometry)
        if isinstance(augmentation, NoAugmentation):
            size = indices.size * self._channels * self._geometry.image_size**2
            fits = size <= self._max_bytes or self._decoded is not None
            return self._whole(split, indices, size, plan) if fits else self._decoding(indices, seed, plan)
        if self._on_device is not None and device_transform is not None:
            return self._augmented(self._on_device, indices, device_transform, seed, list(plan))
        return self._random(indices, train_transform(augmentation, self._geometry), seed, list(plan))

    def _whole(self, split: Split, indices: Indices, size: int, plan: Plan) -> Iterator[Batch]:
        """From a split that is held: shared with other runs, or else in memory, or on the device."""
        if split not in self._held:
            images = self._hold(indices)
            if self._device is not None and self._room.take(size):
                self._held[split] = HeldSplit(images.batch, indices.size, self._device)
            else:
                self._held[split] = images
        held = self._held[split]
        for drawn in plan:
            if isinstance(held, HeldSplit):
                yield held.batch(drawn.positions)
            else:
                yield self._moved(held.batch(drawn.positions, self._pinned))

    def _hold(self, indices: Indices) -> Preloaded | Shared:
        if self._decoded is not None:
            shared = Shared(self._decoded, self._geometry, indices)
            self.images_decoded += shared.decoded
            return shared
        self.images_decoded += indices.size
        return Preloaded(self._source, indices, train_transform(_PLAIN, self._geometry))

    def _decoding(self, indices: Indices, seed: int, plan: Plan) -> Iterator[Batch]:
        """Decoded anew whenever they are asked for."""
        images = ImageItems(self._source, indices, train_transform(_PLAIN, self._geometry), seed)
        for batch in live_batches(images, plan, self._num_workers, self._pinned):
            self.images_decoded += len(batch["label"])
            yield self._moved(batch)

    def _random(self, indices: Indices, transform: Transform, seed: int, plan: Sequence[Drawn]) -> Iterator[Batch]:
        """Random views, made on the CPU of originals that are held, or decoded."""
        originals = self._originals
        before = originals.decoded
        if self._num_workers and plan:  # what a worker holds ends with it
            originals.fill(indices[np.concatenate([drawn.positions for drawn in plan])])
        load = partial(originals.load, keep=not self._num_workers)
        images = ImageItems(replace(self._source, load=load), indices, transform, seed)
        for batch in live_batches(images, plan, self._num_workers, self._pinned):
            if self._num_workers:
                self.images_decoded += sum(not originals.holds(index) for index in batch["index"].tolist())
            self.images_decoded += originals.decoded - before
            before = originals.decoded
            yield self._moved(batch)

    def _augmented(
        self,
        originals: DeviceOriginals,
        indices: Indices,
        transform: Callable[[Tensor], Tensor],
        seed: int,
        plan: Sequence[Drawn],
    ) -> Iterator[Batch]:
        """Random views, made on the device."""
        labels = torch.tensor([self._source.items[index].label for index in indices])
        with closing(originals.batches(indices[drawn.positions] for drawn in plan)) as batches:
            before = originals.decoded
            for (epoch, positions, views), images in zip(plan, batches, strict=True):
                items = indices[positions]
                shown = zip(items.tolist(), views.tolist(), strict=True)
                seeds = [sample_seed(seed, epoch, index, view) for index, view in shown]
                self.images_decoded += originals.decoded - before
                before = originals.decoded
                made = augmented(images, transform, seeds)
                label = labels[torch.from_numpy(positions)]
                yield self._moved({"image": made, "label": label, "index": torch.from_numpy(items)})

    @property
    def _pinned(self) -> bool:
        return self._device is not None and self._device.type == "cuda"

    def _moved(self, batch: Batch) -> Batch:
        if self._device is None:
            return batch
        return {name: to_device(tensor, self._device) for name, tensor in batch.items()}  # type: ignore[return-value, arg-type]
