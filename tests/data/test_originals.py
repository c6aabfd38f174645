"""Decoded originals: the same pixels as from the file, each decoded once."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.test_augmentation import ALL, FolderCfg, MakeFolder, _equal, _module
from tl_experiments.data.image_folder import open_image_folder
from tl_experiments.data.originals import Originals
from tl_experiments.data.sources import open_source
from tl_experiments.types import Batch

PIXELS = 20 * 16 * 3  # bytes of an image of make_folder
N = np.arange(35)


@pytest.fixture
def photos(make_folder: MakeFolder) -> Path:
    return make_folder({"train/a": 14, "train/b": 12, "val/a": 5, "val/b": 4})


def _counted(source: Any) -> tuple[Any, Counter[int]]:
    seen: Counter[int] = Counter()

    def load(index: int) -> Any:
        seen[index] += 1
        return source.load(index)

    return dataclasses.replace(source, load=load), seen


@pytest.mark.parametrize("how", ["as they are asked for", "at once"])
@pytest.mark.parametrize(("room", "held"), [(35 * PIXELS, 35), (10 * PIXELS + 5, 10), (0, 0)])
def test_each_is_decoded_once_as_far_as_they_fit(
    how: str, room: int, held: int, photos: Path, folder_cfg: FolderCfg
) -> None:
    source, seen = _counted(open_source(folder_cfg(photos)))
    originals = Originals(source, room)
    if how == "at once":
        originals.fill(N)
    for _ in range(3):
        for index in range(35):
            assert np.array_equal(np.asarray(originals.load(index)), np.asarray(source.load(index)))
    looked = {index: count - 3 for index, count in seen.items()}  # three of them are the comparison's
    assert sum(originals.holds(index) for index in range(35)) == held
    assert [index for index in range(35) if looked[index] == 1] == list(range(held))
    assert originals.decoded == sum(looked.values())


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_they_come_back_in_their_mode(mode: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (9, 7, 4), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(tmp_path / name / "0.png")
    source = open_image_folder(str(tmp_path), False, len(mode))
    originals = Originals(source, 10**6)
    for _ in range(2):
        found, expected = originals.load(1), source.load(1)
        assert isinstance(found, Image.Image)
        assert isinstance(expected, Image.Image)
        assert (found.mode, found.size, found.tobytes()) == (mode, expected.size, expected.tobytes())


@pytest.mark.parametrize("channels", [2, 4])
def test_arrays_stay_arrays(channels: int, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "0.npy", np.full((5, 6, channels), 7, np.uint8))
    originals = Originals(open_image_folder(str(tmp_path), False, channels), 10**6)
    for _ in range(2):
        found = originals.load(0)
        assert isinstance(found, np.ndarray)
        assert found.shape == (5, 6, channels)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: a.name)
def test_epochs_on_held_originals_are_those_on_files(
    augmentation: Any, workers: int, photos: Path, folder_cfg: FolderCfg
) -> None:
    """To the bit, however many are held; three epochs of 21 images decode 21 instead of 63.

    Eight at once are decoded for workers, so that six are found to have no room.
    """
    seen: list[list[Batch]] = []
    for room, decoded in ((0, 63), (10 * PIXELS, 10 + 3 * 11 + (6 if workers else 0)), (10**6, 21)):
        module = _module(folder_cfg(photos, preload_max_bytes=room), augmentation, workers)
        seen.append([batch for epoch in range(3) for batch in module.train_batches(3 * epoch, 3 * epoch + 3)])
        assert module.images_decoded == decoded
    assert _equal(seen[0], seen[1])
    assert _equal(seen[0], seen[2])


def test_views_for_the_cache_decode_each_image_once(photos: Path, folder_cfg: FolderCfg) -> None:
    held, anew = (_module(folder_cfg(photos, preload_max_bytes=room), ALL[0]) for room in (10**6, 0))
    for view in range(3):
        assert torch.equal(held.images(N[:26], view), anew.images(N[:26], view))
    assert (held.images_decoded, anew.images_decoded) == (26, 78)
