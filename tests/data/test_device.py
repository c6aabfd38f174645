"""What a GPU does with images, done on the CPU, with the same functions."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.data.test_augmentation import ALL, FolderCfg, MakeFolder, _equal, _module
from tl_experiments.config.augmentations import NoAugmentation
from tl_experiments.data.datamodule import TransferDataModule
from tl_experiments.data.dataset import Preloaded
from tl_experiments.data.device import DeviceOriginals, HeldSplit, Room, as_tensor, augmented
from tl_experiments.data.sources import open_source
from tl_experiments.data.transforms import Geometry, eval_transform, seeded, tensor_transform, train_transform
from tl_experiments.errors import DataError

CPU = torch.device("cpu")
GEOMETRY = Geometry(48, "bicubic", 1.0)
NONE = NoAugmentation(name="none")


def _smooth_photo(seed: int, width: int, height: int) -> Image.Image:
    """As photographs are: neighbours are alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


PHOTOS = [_smooth_photo(seed, 90 + 13 * seed, 120 - 7 * seed) for seed in range(8)]


def _with_pillow(augmentation: Any, geometry: Geometry, photos: list[Image.Image], seeds: list[int]) -> Tensor:
    made = []
    for photo, seed in zip(photos, seeds, strict=True):
        with seeded(seed):
            made.append(train_transform(augmentation, geometry)(photo))
    return torch.stack(made)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_crops_and_flips_are_pillows(interpolation: Any, mode: str) -> None:
    """Another crop, or a flip too many, differs by tens of levels."""
    geometry = dataclasses.replace(GEOMETRY, interpolation=interpolation)
    photos = [photo.convert(mode) for photo in PHOTOS]
    seeds = list(range(100, 108))
    transform = tensor_transform(ALL[0], geometry)
    assert transform is not None
    result = augmented([as_tensor(photo) for photo in photos], transform, seeds)
    expected = _with_pillow(ALL[0], geometry, photos, seeds)
    assert result.dtype == torch.uint8
    assert result.shape == expected.shape
    difference = (result.float() - expected.float()).abs().mean((1, 2, 3))
    assert (difference <= 1.5).all(), difference
    others = (result.flip(-1).float() - expected.float()).abs().mean((1, 2, 3))
    assert (others > 8).all(), others


@pytest.mark.parametrize("augmentation", ALL[:3], ids=lambda a: a.name)
def test_a_view_follows_its_own_seed_alone(augmentation: Any) -> None:
    """Whatever the batch and the order, and whatever was drawn before; the global generator stays where it was."""
    transform = tensor_transform(augmentation, GEOMETRY)
    assert transform is not None
    images, seeds = [as_tensor(photo) for photo in PHOTOS], list(range(8))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    whole = augmented(images, transform, seeds)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    order = [5, 2, 7]
    some = augmented([images[place] for place in order], transform, [seeds[place] for place in order])
    assert torch.equal(some, whole[order])
    assert not torch.equal(augmented(images, transform, seeds[1:] + seeds[:1]), whole)


def test_what_only_pillow_has_stays_on_the_cpu() -> None:
    assert tensor_transform(ALL[0], dataclasses.replace(GEOMETRY, interpolation="lanczos")) is None


@pytest.fixture
def photos(make_folder: MakeFolder) -> Path:
    return make_folder({"train/a": 14, "train/b": 12, "val/a": 5, "val/b": 4})


@pytest.mark.parametrize(("room", "memory", "decoded"), [(10**6, 0, 35), (0, 10**6, 35), (0, 0, 70), (4800, 5120, 60)])
def test_originals_are_decoded_once_where_they_find_room(
    room: int, memory: int, decoded: int, photos: Path, folder_cfg: FolderCfg
) -> None:
    """960 bytes each; pinned memory is counted in powers of two. Five find room in each, in the last case."""
    source = open_source(folder_cfg(photos))
    seen: Counter[int] = Counter()

    def load(index: int) -> Any:
        seen[index] += 1
        return source.load(index)

    originals = DeviceOriginals(dataclasses.replace(source, load=load), CPU, Room(room), Room(memory))
    for _ in range(2):
        plan = [np.arange(start, end) for start, end in pairwise((0, 9, 10, 35))]
        for items, images in zip(plan, originals.batches(plan), strict=True):
            for index, image in zip(items.tolist(), images, strict=True):
                assert torch.equal(image, as_tensor(source.load(index)))
    assert sum(seen.values()) == originals.decoded == decoded


def test_an_image_of_two_batches_in_a_row_is_in_both(photos: Path, folder_cfg: FolderCfg) -> None:
    originals = DeviceOriginals(open_source(folder_cfg(photos)), CPU, Room(0), Room(0))
    first, second = originals.batches([np.array([3, 4]), np.array([4, 3])])
    assert torch.equal(first[0], second[1])
    assert torch.equal(first[1], second[0])


def test_a_damaged_image_is_named(photos: Path, folder_cfg: FolderCfg) -> None:
    (photos / "train/b/2.png").write_text("no image")
    module = _on_device(folder_cfg(photos), ALL[0])
    with pytest.raises(DataError, match=r"train/b/2\.png: cannot be decoded"):
        list(module.train_batches(0, 3))


def test_a_held_split_gives_the_same_batches(photos: Path, folder_cfg: FolderCfg) -> None:
    source, indices = open_source(folder_cfg(photos)), np.arange(3, 30)
    split = Preloaded(source, indices, lambda image: eval_transform(image, GEOMETRY))
    held = HeldSplit(split.batch, len(indices), CPU)
    split_batches = [split.batch(np.array(chosen)) for chosen in ([3, 1], [26, 0, 7])]
    assert _equal([held.batch(np.array(chosen)) for chosen in ([3, 1], [26, 0, 7])], split_batches)


def _on_device(cfg: Any, augmentation: Any, hold_bytes: int = 10**6) -> TransferDataModule:
    """Served as on a GPU."""
    module = _module(cfg, augmentation)
    module.serve(CPU, hold_bytes)
    return module


@pytest.mark.parametrize("hold_bytes", [10**6, 40_000, 0], ids=["all held", "some held", "none held"])
def test_batches_of_images_as_they_are_equal_the_cpus(hold_bytes: int, photos: Path, folder_cfg: FolderCfg) -> None:
    here, there = _module(folder_cfg(photos), NONE), _on_device(folder_cfg(photos), NONE, hold_bytes)
    assert _equal(list(here.train_batches(0, 7)), list(there.train_batches(0, 7)))
    assert _equal(list(here.eval_loader("val")), list(there.eval_loader("val")))
    assert there.images_decoded == here.images_decoded


@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: a.name)
def test_a_cut_changes_no_view_and_room_none_either(augmentation: Any, photos: Path, folder_cfg: FolderCfg) -> None:
    whole = list(_on_device(folder_cfg(photos), augmentation).train_batches(0, 7))
    pieces = []
    for first, end in pairwise((0, 2, 3, 7)):
        cfg = folder_cfg(photos, preload_max_bytes=0)
        pieces += list(_on_device(cfg, augmentation, hold_bytes=4000).train_batches(first, end))
    assert _equal(pieces, whole)
    same = list(_module(folder_cfg(photos), augmentation).train_batches(0, 7))
    assert all(torch.equal(one["index"], other["index"]) for one, other in zip(whole, same, strict=True))
    assert all(torch.equal(one["label"], other["label"]) for one, other in zip(whole, same, strict=True))


def test_epochs_decode_each_image_once(photos: Path, folder_cfg: FolderCfg) -> None:
    module = _on_device(folder_cfg(photos), ALL[0])
    for epoch in range(3):
        list(module.train_batches(3 * epoch, 3 * epoch + 3))
    assert module.images_decoded == 21


class _Waits(TorchDispatchMode):
    """Counts the numbers that Python reads out of tensors: each waits for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.numbers += func._schema.name == "aten::_local_scalar_dense"
        return func(*args, **(kwargs or {}))


def test_a_held_batch_waits_for_nothing(photos: Path, folder_cfg: FolderCfg) -> None:
    module = _on_device(folder_cfg(photos), NONE)
    list(module.train_batches(0, 3))
    with _Waits() as waits:
        list(module.train_batches(3, 9))
    assert waits.numbers == 0
