"""Grey, transparent and multi-band images: pixels against Pillow, numpy and torchvision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tl_experiments.config.augmentations import FlipCrop, NoAugmentation
from tl_experiments.config.datasets import ImageFolder
from tl_experiments.data.datamodule import TransferDataModule
from tl_experiments.data.decode import load_image
from tl_experiments.data.image_folder import open_image_folder
from tl_experiments.data.transforms import Geometry, eval_transform
from tl_experiments.errors import DataError

FolderCfg = Callable[..., ImageFolder]
NONE = NoAugmentation(name="none")
FLIP_CROP = FlipCrop(name="flip_crop", min_area=0.3, flip_probability=0.5)


def _pixels(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _saved(image: Image.Image, path: Path) -> Path:
    image.save(path)
    return path


def test_transparency_is_pillows(tmp_path: Path) -> None:
    image = Image.fromarray(_pixels(9, 7, 4))
    loaded = load_image(_saved(image, tmp_path / "a.png"), 4)
    assert isinstance(loaded, Image.Image)
    assert loaded.mode == "RGBA"
    assert np.array_equal(loaded, image)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "LA", "CMYK", "1", "I;16"])
def test_every_mode_can_be_read_with_four_channels_and_with_one(mode: str, tmp_path: Path) -> None:
    if mode == "I;16":
        stored = Image.fromarray(_pixels(9, 7).astype(np.uint16) * 257)
        plain = Image.fromarray((np.asarray(stored) // 257).astype(np.uint8))
    else:
        stored = plain = Image.fromarray(_pixels(9, 7, 3)).convert(mode)
    path = _saved(stored, tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    assert np.array_equal(load_image(path, 4), plain.convert("RGBA"))
    if mode == "LA":
        plain = plain.convert("L")  # all opaque
    if mode not in ("P", "CMYK"):
        assert np.array_equal(load_image(path, 1), plain.convert("L"))
    assert np.array_equal(load_image(path, 1), np.asarray(load_image(path, 3).convert("L")))  # type: ignore[union-attr]


def test_the_palettes_transparency_is_kept(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=1)
    assert np.asarray(load_image(tmp_path / "a.png", 4)).tolist() == [[[10, 20, 30, 255], [40, 50, 60, 0]]]
    grey = np.asarray(load_image(tmp_path / "a.png", 1))
    assert grey[0, 1] == 255  # laid on white


@pytest.mark.parametrize("shape", [(40, 30), (30, 41), (16, 16), (8, 9)], ids=str)
def test_four_channels_are_resized_as_by_torchvision(shape: tuple[int, int]) -> None:
    image = Image.fromarray(_pixels(*shape, 4))
    reference = v2.Compose([v2.Resize(18), v2.CenterCrop(16), v2.PILToTensor()])(image)
    assert torch.equal(eval_transform(image, Geometry(16, "bilinear", 16 / 18)), reference)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_arrays_are_numpys(channels: int, tmp_path: Path) -> None:
    array = _pixels(9, 7, channels)
    np.save(tmp_path / "a.npy", array)
    loaded = np.asarray(load_image(tmp_path / "a.npy", channels))
    assert np.array_equal(loaded.reshape(array.shape), array)
    unchanged = eval_transform(load_image(tmp_path / "a.npy", channels), Geometry(7, "bilinear", 1.0))
    assert torch.equal(unchanged, torch.from_numpy(array[1:8].transpose(2, 0, 1).copy()))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(40, 30), (10, 12)], ids=str)
def test_bands_are_resized_as_by_torchvision_on_tensors(shape: tuple[int, int], interpolation: Any) -> None:
    smooth = np.linspace(0, 255, shape[0])[:, None, None] * np.linspace(0.2, 1, shape[1])[:, None]
    array = (smooth * np.linspace(0.1, 1, 13)).astype(np.uint8)
    resize = v2.Resize(16, v2.InterpolationMode(interpolation), antialias=True)
    reference = v2.CenterCrop(16)(resize(torch.from_numpy(array.transpose(2, 0, 1).copy())))
    result = eval_transform(array, Geometry(16, interpolation, 1.0))
    assert (result.int() - reference.int()).abs().max() <= 1  # roundings differ


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos"])
def test_an_array_of_colours_is_treated_as_the_photo(interpolation: Any, tmp_path: Path) -> None:
    photo = Image.fromarray(_pixels(31, 50, 3))
    np.save(tmp_path / "a.npy", np.asarray(photo))
    geometry = Geometry(16, interpolation, 0.9)
    loaded = load_image(tmp_path / "a.npy", 3)
    assert torch.equal(eval_transform(loaded, geometry), eval_transform(photo, geometry))
    assert torch.equal(eval_transform(np.asarray(photo), geometry), eval_transform(photo, geometry))  # band by band


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('a file ran code')",)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: np.save(p, _pixels(4, 4, 2)), r"an array of 2 channels, expected 13 -> dataset.channels=2, or"),
        (lambda p: np.save(p, _pixels(4, 4, 13) / 255), r"cannot be decoded \(float64 \(4, 4, 13\), expected uint8 "),
        (lambda p: np.save(p, _pixels(4, 4)), r"cannot be decoded \(uint8 \(4, 4\), expected uint8 \(height, width"),
        (lambda p: np.save(p, _pixels(0, 4, 13)), r"cannot be decoded \(uint8 \(0, 4, 13\), expected uint8 "),
        (lambda p: np.save(p, np.array([_Code()])), r"cannot be decoded \(object \(1,\), expected uint8 "),
        (lambda p: p.write_bytes(b""), r"cannot be decoded \(no image format that is read, 0 bytes"),
        (lambda p: np.savez(p.open("wb"), _pixels(4, 4, 13)), r"cannot be decoded \(no image format that is read, "),
    ],
)
def test_arrays_that_cannot_be_used_are_named(write: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    write(path)
    with pytest.raises(DataError, match=rf"a\.npy: {message}"):
        load_image(path, 13)


def test_image_files_of_too_few_channels_are_named(tmp_path: Path) -> None:
    path = _saved(Image.new("RGB", (4, 4)), tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: an image file, expected an array of 13 channels -> store it as .npy"):
        load_image(path, 13)


@pytest.fixture
def bands(tmp_path: Path) -> Callable[[int], Path]:
    def make(channels: int) -> Path:
        for number in range(20):
            path = tmp_path / f"bands{channels}" / "ab"[number % 2] / f"{number}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, _pixels(12, 14, channels, seed=number))
        return tmp_path / f"bands{channels}"

    return make


@pytest.mark.parametrize("augmentation", [NONE, FLIP_CROP], ids=lambda a: a.name)
@pytest.mark.parametrize("channels", [1, 2, 3, 13])
def test_batches_have_the_channels(channels: int, augmentation: Any, bands: Any, folder_cfg: FolderCfg) -> None:
    batches = []
    for preload, workers in ((10**9, 0), (0, 0), (0, 2)):
        cfg = folder_cfg(bands(channels), channels=channels, preload_max_bytes=preload)
        module = TransferDataModule(
            cfg,
            augmentation,
            Geometry(8, "bilinear", 1.0),
            seed=0,
            batch_size=6,
            eval_batch_size=6,
            num_workers=workers,
        )
        assert module.spec.channels == channels
        batches.append(torch.cat([batch["image"] for batch in module.train_batches(0, 2)]))
    assert batches[0].shape == (12, channels, 8, 8)
    assert batches[0].dtype == torch.uint8
    assert torch.equal(batches[0], batches[1])
    assert torch.equal(batches[0], batches[2])


def test_a_crop_treats_all_bands_alike(bands: Any, folder_cfg: FolderCfg) -> None:
    root = bands(1)
    for path in root.rglob("*.npy"):
        np.save(path, np.repeat(np.load(path), 5, axis=2))
    cfg = folder_cfg(root, channels=5)
    module = TransferDataModule(
        cfg, FLIP_CROP, Geometry(8, "bilinear", 1.0), seed=0, batch_size=12, eval_batch_size=6, num_workers=0
    )
    (batch,) = module.train_batches(0, 1)
    assert (batch["image"] == batch["image"][:, :1]).all()


def test_memory_is_counted_with_the_channels(bands: Any, folder_cfg: FolderCfg) -> None:
    for spare, decoded in ((0, 12), (-1, 24)):
        cfg = folder_cfg(bands(13), channels=13, preload_max_bytes=12 * 13 * 8 * 8 + spare)
        module = TransferDataModule(
            cfg, NONE, Geometry(8, "bilinear", 1.0), seed=0, batch_size=12, eval_batch_size=6, num_workers=0
        )
        list(module.train_batches(0, 1)), list(module.train_batches(1, 2))
        assert module.images_decoded == decoded


def test_the_listing_holds_arrays_beside_images(bands: Any) -> None:
    root = bands(3)
    Image.new("RGB", (4, 4)).save(root / "a" / "photo.png")
    source = open_image_folder(str(root), False, 3)
    assert len(source.items) == 21
    assert [np.asarray(source.load(index)).ndim for index in range(21)] == [3] * 21
