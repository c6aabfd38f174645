"""Balanced sampling: each class equally often in every epoch, wherever a run is cut and however images are held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import WeightedRandomSampler

from tl_experiments.config.augmentations import FlipCrop, NoAugmentation
from tl_experiments.config.datasets import ImageFolder
from tl_experiments.data.batches import balanced_order, step_batches
from tl_experiments.data.datamodule import TransferDataModule
from tl_experiments.data.transforms import Geometry

FolderCfg = Callable[..., ImageFolder]
MakeFolder = Callable[[Mapping[str, int]], Path]

GEOMETRY = Geometry(image_size=12, interpolation="bilinear", crop_fraction=1.0)
NONE = NoAugmentation(name="none")
FLIP_CROP = FlipCrop(name="flip_crop", min_area=0.3, flip_probability=0.5)
COUNTS = [(40, 8, 3), (1, 99), (5, 5, 5), (7, 1, 1, 1)]


def labels_of(counts: tuple[int, ...]) -> np.ndarray:
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(7).permutation(labels)


@pytest.mark.parametrize("counts", COUNTS)
def test_classes_and_the_images_of_a_class_differ_by_one_at_most(counts: tuple[int, ...]) -> None:
    labels = labels_of(counts)
    for seed in range(20):
        order = balanced_order(labels, np.random.default_rng(seed))
        assert len(order) == len(labels)
        assert np.ptp(np.bincount(labels[order], minlength=len(counts))) <= 1
        times = np.bincount(order, minlength=len(labels))
        assert all(np.ptp(times[labels == label]) <= 1 for label in range(len(counts)))


def test_in_the_long_run_images_come_as_often_as_from_torchs_weighted_sampler() -> None:
    labels = labels_of((40, 8, 3))
    weights = 1 / np.bincount(labels)[labels]
    n, epochs = len(labels), 2000
    sampler = WeightedRandomSampler(weights, n * epochs, generator=torch.Generator().manual_seed(0))
    expected = np.bincount(list(sampler), minlength=n) / epochs
    found = sum(
        np.bincount(balanced_order(labels, np.random.default_rng([0, epoch])), minlength=n) for epoch in range(epochs)
    )
    assert np.abs(found / epochs / expected - 1).max() < 0.12  # the sampler's noise: 850 draws, sd 0.034


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    labels = labels_of((20, 5))

    def order(seed: int, epoch: int) -> list[int]:
        batches = step_batches(25, 25, seed, epoch, epoch + 1, labels)
        return next(batches).positions.tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(*key)) for key in [(0, 0), (0, 1), (1, 0)]}) == 3


@pytest.mark.parametrize("cuts", [(0, 12), (0, 1, 12), (0, 4, 6, 12), (0, 5, 5, 11, 12)])
def test_a_run_cut_at_any_steps_sees_the_same_batches(cuts: tuple[int, ...]) -> None:
    labels = labels_of((12, 3, 2))

    def seen(first: int, end: int) -> list[tuple[int, list[int], list[int]]]:
        drawn = step_batches(17, 5, 3, first, end, labels)
        return [(one.epoch, one.positions.tolist(), one.views.tolist()) for one in drawn]

    assert [batch for first, end in pairwise(cuts) for batch in seen(first, end)] == seen(0, 12)


def test_views_count_how_often_an_epoch_has_shown_an_image() -> None:
    labels = labels_of((12, 3, 2))
    for epoch in range(3):
        shown: Counter[int] = Counter()
        for drawn in step_batches(17, 5, 3, 4 * epoch, 4 * epoch + 4, labels):
            assert drawn.epoch == epoch
            for position, view in zip(drawn.positions.tolist(), drawn.views.tolist(), strict=True):
                assert view == shown[position]
                shown[position] += 1
    assert all(not drawn.views.any() for drawn in step_batches(17, 5, 3, 0, 12))


def _module(cfg: ImageFolder, augmentation: FlipCrop | NoAugmentation = NONE, workers: int = 0) -> TransferDataModule:
    options = {"seed": 0, "batch_size": 8, "eval_batch_size": 16, "num_workers": workers}
    return TransferDataModule(cfg, augmentation, GEOMETRY, **options)


def _seen(module: TransferDataModule, epochs: int = 2) -> list[tuple[list[int], list[int], torch.Tensor]]:
    batches = module.train_batches(0, epochs * module.steps_per_epoch)
    return [(batch["index"].tolist(), batch["label"].tolist(), batch["image"]) for batch in batches]


@pytest.mark.parametrize("augmentation", [NONE, FLIP_CROP], ids=lambda one: one.name)
def test_balanced_images_are_the_same_in_memory_live_and_in_workers(
    augmentation: FlipCrop | NoAugmentation, make_folder: MakeFolder, folder_cfg: FolderCfg
) -> None:
    root = make_folder({"train/a": 14, "train/b": 3, "val/a": 2, "val/b": 2, "test/a": 1, "test/b": 1})
    ways = [(10**9, 0), (0, 0), (0, 2)]
    seen = [
        _seen(_module(folder_cfg(root, sampling="balanced", preload_max_bytes=held), augmentation, workers))
        for held, workers in ways
    ]
    for other in seen[1:]:
        assert [one[:2] for one in other] == [one[:2] for one in seen[0]]
        assert all(torch.equal(one[2], expected[2]) for one, expected in zip(other, seen[0], strict=True))
    for epoch in (seen[0][:2], seen[0][2:]):  # 17 images in batches of 8 and 9
        labels = [label for _, batch, _ in epoch for label in batch]
        assert sorted(Counter(labels).values()) == [8, 9]


def test_an_image_that_is_drawn_again_is_augmented_anew(make_folder: MakeFolder, folder_cfg: FolderCfg) -> None:
    root = make_folder({"train/a": 30, "train/b": 1, "val/a": 2, "val/b": 2, "test/a": 1, "test/b": 1})
    shown = [
        picture
        for index, _, images in _seen(_module(folder_cfg(root, sampling="balanced"), FLIP_CROP), epochs=1)
        for item, picture in zip(index, images, strict=True)
        if item == 30
    ]
    assert len(shown) in (15, 16)
    assert len({picture.numpy().tobytes() for picture in shown}) == len(shown)
