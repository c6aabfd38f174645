"""Batches of kept activations: the same items in the same order as the batches of images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tl_experiments.data.datamodule import TransferDataModule
from tl_experiments.data.dataset import Batches
from tl_experiments.data.device import to_device
from tl_experiments.data.items import Split
from tl_experiments.features.activations import Activations, Indices
from tl_experiments.types import Batch


def count_items(datasets: Sequence[TransferDataModule]) -> int:
    """Of all images that runs over these divisions of a dataset look at."""
    return np.unique(np.concatenate([data.items(split) for data in datasets for split in data.spec.sizes])).size


@dataclass(frozen=True)
class CachedData:
    """What ``TransferDataModule`` gives as images, given as activations.

    Args:
        data: Items, labels, and which of them make up which batch.
        evaluation: Of images as they are.
        training: Views of training images, which epochs go through in turn; ``evaluation`` alone where none is random.
    """

    data: TransferDataModule
    evaluation: Activations
    training: Sequence[Activations]

    @property
    def encoded(self) -> int:
        """Images that this process has encoded for it."""
        return sum(one.encoded for one in self._all())

    def close(self) -> None:
        """Let go of all rows; counts stay."""
        for one in self._all():
            one.close()

    def _all(self) -> Iterable[Activations]:
        return {id(one): one for one in (self.evaluation, *self.training)}.values()

    def ensure(self, first_step: int, end_step: int) -> None:
        """Encode what the steps [first_step, end_step) train on, and val."""
        needed: dict[int, set[int]] = {}
        for drawn in self.data.step_positions(first_step, end_step):
            needed.setdefault(drawn.epoch % len(self.training), set()).update(drawn.positions.tolist())
        val = self.data.items("val")
        for view, found in needed.items():
            items = self.data.items("train")[np.fromiter(sorted(found), np.int64)]
            activations = self.training[view]
            activations.ensure(np.concatenate([items, val]) if activations is self.evaluation else items)
        self.evaluation.ensure(val)

    def ensure_all(self, runs: Sequence[tuple[TransferDataModule, int]]) -> None:
        """Encode all images that runs over these divisions of the dataset, of so many epochs, look at."""
        seen = [data.items(split) for data, _ in runs for split in ("val", *data.tests)]
        if self.evaluation in self.training:
            seen += [data.items("train") for data, _ in runs]
        self.evaluation.ensure(np.unique(np.concatenate(seen)))
        for view, activations in enumerate(self.training):
            train = [data.items("train") for data, epochs in runs if epochs > view]
            if train:
                activations.ensure(np.unique(np.concatenate(train)))

    def train_batches(self, first_step: int, end_step: int) -> Batches:
        """As ``TransferDataModule.train_batches``."""

        def start() -> Iterator[Batch]:
            items = self.data.items("train")
            share = self.data.share
            for drawn in self.data.step_positions(first_step, end_step):
                view = self.training[drawn.epoch % len(self.training)]
                batch = self._batch(view, items[share.drawn(drawn).positions])
                yield batch if share.of == 1 else {**batch, "whole": self.data.labels_of_all(drawn)}

        return Batches(start, end_step - first_step)

    def eval_loader(self, split: Split) -> Batches:
        """As ``TransferDataModule.eval_loader``."""
        plan = self.data.eval_items(split)

        def start() -> Iterator[Batch]:
            self.evaluation.ensure(self.data.items(split))
            for items in plan:
                yield self._batch(self.evaluation, items)

        return Batches(start, len(plan))

    def _batch(self, activations: Activations, items: Indices) -> Batch:
        device = activations.device
        return {
            "activations": activations.batch(items),
            "label": to_device(self.data.labels(items), device),
            "index": to_device(torch.from_numpy(items), device),
        }
