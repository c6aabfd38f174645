"""One dataset as a run uses it: its splits, its labels, and the batches of any stretch of steps."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from tl_experiments.config.augmentations import Augmentation, CutMix, MixUp, NoAugmentation
from tl_experiments.config.datasets import Dataset
from tl_experiments.data.batches import WHOLE, Drawn, Share, batch_notes, eval_batches, step_batches, steps_per_epoch
from tl_experiments.data.dataset import Batches
from tl_experiments.data.decoded import DecodedImages
from tl_experiments.data.findings import leakage_notes
from tl_experiments.data.items import Source, Split
from tl_experiments.data.mixing import mixed
from tl_experiments.data.serving import Serving
from tl_experiments.data.sources import open_dataset
from tl_experiments.data.splits import Indices, few
from tl_experiments.data.transforms import Geometry
from tl_experiments.safe_text import storable
from tl_experiments.types import Batch, DataSpec


class TransferDataModule:
    """Images of one dataset, cut and transformed for one backbone.

    Building it lists and fingerprints the dataset; images are decoded when the first batch of their split is made.
    What is decoded is kept in memory as far as it fits; batches are on the CPU until ``serve`` names another device.

    Args:
        cfg: The dataset.
        augmentation: Of training images.
        geometry: What the backbone sees.
        seed: The run's: order, augmentation, and the label subset where ``subset_seed`` is null.
        batch_size: Training images a step.
        eval_batch_size: Images a batch on val and test.
        num_workers: Processes that decode images which are not held in memory.
        images_per_split: Use at most this many of each split.
        evaluate_on_train: Val and test are the training images.
        source: The dataset, listed already.
        decoded: Its images, which runs share.

    Attributes:
        spec: Classes, sizes, fingerprint and notes. The fingerprint covers contents and splits, not the label subset.
        steps_per_epoch: Training batches an epoch.

    Raises:
        DataError: The dataset cannot be used as it stands.
    """

    def __init__(
        self,
        cfg: Dataset,
        augmentation: Augmentation,
        geometry: Geometry,
        *,
        seed: int,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        images_per_split: int | None = None,
        evaluate_on_train: bool = False,
        source: Source | None = None,
        decoded: DecodedImages | None = None,
    ) -> None:
        opened = open_dataset(cfg, seed, source=decoded.source if decoded else source)
        source, used = opened.source, few(opened.used, images_per_split, evaluate_on_train)
        self._source, self._splits = source, used
        sizes = {split: indices.size for split, indices in used.indices.items()}
        notes = (*source.notes, *used.notes, *leakage_notes(source, opened.used.indices))
        self.spec = DataSpec(
            tuple(map(storable, source.classes)),
            sizes,
            opened.fingerprint,
            (*map(storable, notes), *batch_notes(sizes["train"], batch_size)),
            channels=cfg.channels,
            skipped={storable(item): storable(reason) for item, reason in source.skipped.items()},
        )
        self.steps_per_epoch = steps_per_epoch(sizes["train"], batch_size)
        self._labels = torch.tensor([item.label for item in source.items])
        balanced = cfg.sampling == "balanced"
        self._balanced = self.labels(self.items("train")).numpy() if balanced else None
        self._augmentation, self._geometry, self._seed = augmentation, geometry, seed
        self._batch_size, self._eval_batch_size = batch_size, eval_batch_size
        self.share = WHOLE
        shared = decoded if decoded is not None and decoded.holds(geometry) else None
        self._serving = Serving(source, shared, geometry, cfg.channels, num_workers, cfg.preload_max_bytes)

    def item_ids(self, split: Split) -> tuple[str, ...]:
        """Ids of the split's images, in the order of ``eval_loader``, as text that every file takes."""
        return tuple(storable(self._source.items[index].id) for index in self._splits.indices[split])

    def ordered(self, seed: int, batch_size: int, eval_batch_size: int) -> TransferDataModule:
        """The same images in the batches of another run."""
        other = copy.copy(self)
        other._seed, other._batch_size, other._eval_batch_size = seed, batch_size, eval_batch_size
        n = self.spec.sizes["train"]
        own = len(self.spec.notes) - len(batch_notes(n, self._batch_size))
        other.spec = replace(self.spec, notes=(*self.spec.notes[:own], *batch_notes(n, batch_size)))
        other.steps_per_epoch = steps_per_epoch(n, batch_size)
        return other

    @property
    def images_decoded(self) -> int:
        """Images decoded so far, over all splits; those that come from ``decoded`` only where it had to decode them."""
        return self._serving.images_decoded

    def serve(self, device: torch.device, hold_bytes: int) -> None:
        """Give batches on ``device`` from now on, of whose memory images may take ``hold_bytes``.

        Images are then augmented there. Call it once, before the first batch, and for a GPU alone: without it batches
        are made on the CPU, with the same bits on every machine.
        """
        self._serving.serve(device, hold_bytes)

    def divide(self, share: Share) -> None:
        """Give a part of each batch from now on; ``whole`` in it are the labels of all.

        Val and test are divided too, in batches as many times as large, without augmentation.
        """
        self.share = share

    @property
    def tests(self) -> tuple[Split, ...]:
        """The splits that are looked at once, at the end: ``test``, then the further test sets."""
        return self._splits.tests

    @property
    def source_fingerprint(self) -> str:
        """Of names and contents of all images, however they are split."""
        return self._source.fingerprint

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self._geometry.image_size

    def describe(self, view: int | None) -> str:
        """What ``images`` does to an image, as text that changes with it."""
        return repr((self._geometry, self.spec.channels, None if view is None else (self._augmentation, view)))

    def items(self, split: Split) -> Indices:
        """The split's items in the source, ascending, ``(n,)``."""
        return self._splits.indices[split]

    def labels(self, items: Indices) -> Tensor:
        """Labels of items of the source, int64 ``(n,)``."""
        return self._labels[torch.from_numpy(items)]

    def step_positions(self, first_step: int, end_step: int) -> Iterator[Drawn]:
        """What of the train split each batch of the steps [first_step, end_step) shows."""
        n = self.spec.sizes["train"]
        return step_batches(n, self._batch_size, self._seed, first_step, end_step, self._balanced)

    def eval_items(self, split: Split) -> list[Indices]:
        """The items of each batch of a whole split."""
        return [self.items(split)[drawn.positions] for drawn in self._eval_plan(split)]

    def images(self, items: Indices, view: int | None = None) -> Tensor:
        """Decoded and transformed, uint8 ``(n, channels, size, size)``.

        Args:
            items: Of the source.
            view: Number of a random view, the same under every seed; None is the image as it is.
        """
        return self._serving.images(items, NoAugmentation(name="none") if view is None else self._augmentation, view)

    def train_batches(self, first_step: int, end_step: int) -> Batches:
        """The batches of the steps [first_step, end_step), counted over the whole run.

        A run that is cut at any steps, or resumed, sees the same images as one that is not.

        Args:
            first_step: 0 or more.
            end_step: ``first_step`` or more.
        """

        def start() -> Iterator[Batch]:
            plan = self.step_positions(first_step, end_step)
            if isinstance(self._augmentation, (MixUp, CutMix)):  # which mix images of different parts
                batches = self._make("train", self._augmentation, plan)
                whole = mixed(batches, len(self.spec.classes), self._augmentation, self._seed, first_step)
                return map(self._part, whole)
            return self._parts(list(plan))

        return Batches(start, end_step - first_step)

    def eval_loader(self, split: Split) -> Batches:
        """All images of the split once, in the order of ``item_ids``, without augmentation; or this process's."""
        plan = self._eval_plan(split)
        return Batches(lambda: self._make(split, NoAugmentation(name="none"), plan), len(plan))

    def labels_of_all(self, drawn: Drawn) -> Tensor:
        """Labels of a batch of train over all processes, int64 ``(N,)``."""
        return self.labels(self.items("train")[drawn.positions])

    def _eval_plan(self, split: Split) -> list[Drawn]:
        batches = eval_batches(self.spec.sizes[split], self._eval_batch_size * self.share.of)
        return [self.share.drawn(drawn) for drawn in batches]

    def _parts(self, plan: list[Drawn]) -> Iterator[Batch]:
        """This process's part of each training batch, made alone."""
        made = self._make("train", self._augmentation, [self.share.drawn(drawn) for drawn in plan])
        if self.share.of == 1:
            return made
        return ({**batch, "whole": self.labels_of_all(drawn)} for batch, drawn in zip(made, plan, strict=True))

    def _part(self, batch: Batch) -> Batch:
        """This process's part of a batch that was made whole."""
        if self.share.of == 1:
            return batch
        part = self.share.part(len(batch["label"]))
        own = {name: tensor[part] for name, tensor in batch.items()}  # type: ignore[index]
        return {**own, "whole": batch["label"]}  # type: ignore[typeddict-item]

    def _make(self, split: Split, augmentation: Augmentation, plan: Iterable[Drawn]) -> Iterator[Batch]:
        return self._serving.batches(split, self._splits.indices[split], augmentation, self._seed, plan)
