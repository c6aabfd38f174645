"""Decoded images on disk: each file decoded once, and batches equal to those of an own decoding to the bit."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from tl_experiments import interrupt
from tl_experiments.cache.store import Store
from tl_experiments.config.augmentations import FlipCrop, NoAugmentation
from tl_experiments.config.datasets import Digits, ImageFolder
from tl_experiments.data.datamodule import TransferDataModule
from tl_experiments.data.decoded import DecodedImages
from tl_experiments.data.image_folder import open_image_folder
from tl_experiments.data.items import Source
from tl_experiments.data.sources import open_source
from tl_experiments.data.transforms import Geometry, eval_transform
from tl_experiments.errors import DataError

GEOMETRIES = [Geometry(12, "bilinear", 1.0), Geometry(16, "bicubic", 0.875), Geometry(12, "bicubic", 1.0)]
NONE = NoAugmentation(name="none")
FLIP_CROP = FlipCrop(name="flip_crop", min_area=0.3, flip_probability=0.5)
MakeFolder = Callable[[Mapping[str, int]], Path]
FolderCfg = Callable[..., ImageFolder]


@pytest.fixture
def photos(make_folder: MakeFolder) -> Path:
    """Enough for two ranges of a table."""
    return make_folder({"train/a": 90, "train/b": 80, "val/a": 5, "val/b": 4})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache", 10**9)


def _counted(source: Source, log: Path) -> Source:
    """The source, which writes down the position of each image that it decodes."""

    def load(index: int) -> Any:
        with (log / str(os.getpid())).open("a") as stream:
            stream.write(f"{index}\n")
        return source.load(index)

    log.mkdir(exist_ok=True)
    return dataclasses.replace(source, load=load)


def _loads(log: Path) -> Counter[int]:
    return Counter(int(line) for path in log.iterdir() for line in path.read_text().split())


def test_each_image_is_decoded_once_for_all_sizes(photos, store, tmp_path):
    source = _counted(open_image_folder(str(photos), False), tmp_path / "log")
    everything = np.arange(len(source.items))
    for _ in range(2):
        images = DecodedImages(source, GEOMETRIES, 3, store)
        for geometry in GEOMETRIES:
            assert images.holds(geometry)
            batch = images.batch(everything[::-1], geometry)
            expected = [eval_transform(Image.open(photos / source.items[index].id), geometry) for index in everything]
            assert torch.equal(batch, torch.stack(expected[::-1]))
    assert _loads(tmp_path / "log") == Counter(everything.tolist())
    assert images.decoded == 0
    assert {entry.about["kind"] for entry in store.entries()} == {"decoded"}
    assert len(store.entries()) == 3


def _fill(root: Path, cache: Path, log: Path, started: Any) -> None:
    source = _counted(open_image_folder(str(root), False), log)
    images = DecodedImages(source, GEOMETRIES, 3, Store(cache, 10**9))
    started.wait()
    images.fill(np.arange(len(source.items)))


def test_each_image_is_decoded_once_over_processes(photos, tmp_path):
    context = multiprocessing.get_context("fork")
    started = context.Barrier(2)
    arguments = (photos, tmp_path / "cache", tmp_path / "log", started)
    processes = [context.Process(target=_fill, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert _loads(tmp_path / "log") == Counter(range(179))


def test_a_signal_ends_the_decoding_of_many(photos, store):
    source, loads = open_image_folder(str(photos), False), []

    def load(index: int) -> Any:
        loads.append(index)
        if index == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        return source.load(index)

    images = DecodedImages(dataclasses.replace(source, load=load), GEOMETRIES, 3, store)
    with interrupt.installed(), interrupt.postponed(), pytest.raises(interrupt.Interrupted):
        images.fill(np.arange(100))
    assert len(loads) < 50


def test_a_replaced_image_is_a_miss(photos, store):
    def decoded() -> int:
        images = DecodedImages(open_image_folder(str(photos), False), GEOMETRIES[:1], 3, store)
        images.fill(np.arange(10))
        return images.decoded

    assert [decoded(), decoded()] == [10, 0]
    path = photos / "train/a/3.png"
    raw = bytearray(path.read_bytes())
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    path.write_bytes(path.read_bytes()[: len(raw)].ljust(len(raw), b"\0"))  # the same name and size
    assert decoded() == 10


@pytest.mark.parametrize("change", [{"channels": 1}, {"geometry": Geometry(12, "nearest", 1.0)}])
def test_another_way_of_decoding_is_a_miss(change, photos, store):
    images = DecodedImages(open_image_folder(str(photos), False), GEOMETRIES[:1], 3, store)
    images.fill(np.arange(3))
    channels, geometry = change.get("channels", 3), change.get("geometry", GEOMETRIES[0])
    other = DecodedImages(open_image_folder(str(photos), False, channels), [geometry], channels, store)
    assert other.fill(np.arange(3)) == 3


def test_another_decoder_is_a_miss(photos, store, monkeypatch):
    source = open_image_folder(str(photos), False)
    DecodedImages(source, GEOMETRIES[:1], 3, store).fill(np.arange(3))
    monkeypatch.setattr(PIL, "__version__", "99.0")
    assert DecodedImages(source, GEOMETRIES[:1], 3, store).fill(np.arange(3)) == 3


@pytest.mark.parametrize("augmentation", [NONE, FLIP_CROP], ids=lambda one: one.name)
def test_batches_are_those_of_a_run_alone(augmentation, photos, store, folder_cfg: FolderCfg):
    cfg = folder_cfg(photos, shots=20)
    images = DecodedImages(open_source(cfg), GEOMETRIES, 3, store)
    options = {"seed": 3, "batch_size": 7, "eval_batch_size": 4, "num_workers": 0}
    for geometry in GEOMETRIES:
        alone = TransferDataModule(cfg, augmentation, geometry, **options)
        shared = TransferDataModule(cfg, augmentation, geometry, **options, decoded=images)
        assert shared.spec == alone.spec
        pairs = [
            (module.train_batches(2, 14), module.eval_loader("val"), module.eval_loader("test"))
            for module in (alone, shared)
        ]
        for mine, theirs in zip(*pairs, strict=True):
            assert len(mine) == len(theirs)
            for one, other in zip(mine, theirs, strict=True):
                assert one.keys() == other.keys()
                assert all(torch.equal(one[key], other[key]) and one[key].dtype == other[key].dtype for key in one)


def test_a_run_counts_what_it_decoded_itself(photos, store, folder_cfg: FolderCfg):
    cfg = folder_cfg(photos)
    options = {"seed": 0, "batch_size": 8, "eval_batch_size": 8, "num_workers": 0}

    def run(augmentation: Any) -> int:
        images = DecodedImages(open_source(cfg), GEOMETRIES[:1], 3, store)
        module = TransferDataModule(cfg, augmentation, GEOMETRIES[0], **options, decoded=images)
        for _ in range(2):
            list(module.train_batches(0, 2))
            list(module.eval_loader("val"))
        return module.images_decoded

    val = TransferDataModule(cfg, NONE, GEOMETRIES[0], **options).spec.sizes["val"]
    assert run(FLIP_CROP) == 2 * 8 + val  # the same two batches again
    assert run(NONE) == 170 - val
    assert run(NONE) == 0


def test_a_geometry_without_room_is_decoded_as_before(photos, tmp_path, folder_cfg: FolderCfg):
    cfg = folder_cfg(photos)
    images = DecodedImages(open_source(cfg), GEOMETRIES, 3, Store(tmp_path / "cache", 90_000))
    assert [images.holds(geometry) for geometry in GEOMETRIES] == [True, False, False]
    options = {"seed": 0, "batch_size": 8, "eval_batch_size": 8, "num_workers": 0}
    module = TransferDataModule(cfg, NONE, GEOMETRIES[1], **options, decoded=images)
    assert next(iter(module.eval_loader("test")))["image"].shape == (8, 3, 16, 16)
    fewer = DecodedImages(open_source(cfg), GEOMETRIES[1:2], 3, Store(tmp_path / "other", 90_000), rows=50)
    assert fewer.holds(GEOMETRIES[1])


def test_images_in_memory_are_not_written_down(store, digits_cfg: Callable[..., Digits]):
    images = DecodedImages(open_source(digits_cfg()), GEOMETRIES, 3, store)
    assert not any(images.holds(geometry) for geometry in GEOMETRIES)
    assert not store.folder.exists()
    options = {"seed": 0, "batch_size": 8, "eval_batch_size": 8, "num_workers": 0}
    module = TransferDataModule(digits_cfg(), NONE, GEOMETRIES[0], **options, decoded=images)
    assert len(list(module.train_batches(0, 2))) == 2


def test_an_unreadable_image_is_named_and_others_can_go_on(photos, store):
    (photos / "train/a/3.png").write_bytes(b"no image")
    images = DecodedImages(open_image_folder(str(photos), False), GEOMETRIES, 3, store)
    for _ in range(2):
        with pytest.raises(DataError, match=r"3.png: cannot be decoded"):
            images.fill(np.arange(179))
    assert images.fill(np.arange(128, 179)) == 51
