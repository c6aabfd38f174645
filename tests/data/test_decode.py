"""Whatever a file holds comes out as upright 8-bit RGB, checked by pixel values."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl_experiments.data.decode import load_image, to_rgb
from tl_experiments.errors import DataError

WHITE, BLACK, RED, GREEN = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0)


def _palette(transparent: bool) -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putdata([0, 1])
    if transparent:
        image.info["transparency"] = 1
    return image


def _filled(mode: str, *pixels: object) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    for x, pixel in enumerate(pixels):
        image.putpixel((x, 0), pixel)  # type: ignore[arg-type]
    return image


@pytest.mark.parametrize(
    ("image", "name", "expected"),
    [
        (_filled("L", 0, 77, 255), "grey.png", [BLACK, (77, 77, 77), WHITE]),
        (_filled("1", 0, 255), "bilevel.png", [BLACK, WHITE]),
        (_filled("LA", (0, 255), (0, 0), (100, 51)), "la.png", [BLACK, WHITE, (224, 224, 224)]),
        (_filled("RGBA", (*RED, 255), (*RED, 0), (*RED, 51)), "rgba.png", [RED, WHITE, (255, 204, 204)]),
        (_filled("RGBA", (*RED, 255), (*RED, 0)), "rgba.webp", [RED, WHITE]),
        (_palette(transparent=False), "palette.png", [RED, GREEN]),
        (_palette(transparent=False), "palette.gif", [RED, GREEN]),
        (_palette(transparent=True), "palette_alpha.png", [RED, WHITE]),
        (_filled("CMYK", (0, 255, 255, 0), (0, 0, 0, 255), (0, 0, 0, 0)), "cmyk.tif", [RED, BLACK, WHITE]),
        (Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)), "grey16.png", [0, 1, 128, 255]),
        (Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)), "grey16.tif", [0, 1, 128, 255]),
        (Image.fromarray(np.array([[0, 32896, 65535]], np.int32)), "grey16_in_32.tif", [0, 128, 255]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_modes_become_rgb(image: Image.Image, name: str, expected: list[object], tmp_path: Path) -> None:
    image.save(tmp_path / name, **({"lossless": True, "exact": True} if name.endswith("webp") else {}))
    decoded = load_image(tmp_path / name, 3)
    assert decoded.mode == "RGB"
    colours = [(value,) * 3 if isinstance(value, int) else value for value in expected]
    assert [tuple(pixel) for pixel in np.asarray(decoded)[0].tolist()] == colours


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK"])
def test_jpeg_and_png_colours_survive(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("image.png" if mode == "RGBA" else "image.jpg")
    Image.new("RGB", (16, 16), (200, 40, 90)).convert(mode).save(path, quality=100)
    assert np.abs(np.asarray(load_image(path, 3)).astype(int) - (200, 40, 90)).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int, tmp_path: Path) -> None:
    turned = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }[orientation]
    stored = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(load_image(tmp_path / "turned.png", 3), turned(stored))


@pytest.mark.parametrize("values", [np.array([[0.0, 1.0]], np.float32), np.array([[0, 70000]], np.int32)], ids=str)
def test_pixels_without_a_known_range_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"mode [FI], values 0\S* to \S+, expected 8 or 16 bits a channel"):
        to_rgb(Image.fromarray(values))


def test_want_of_memory_is_not_blamed_on_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def give_up(_: Image.Image) -> None:
        raise MemoryError

    Image.new("RGB", (2, 2)).save(tmp_path / "photo.png")
    monkeypatch.setattr("tl_experiments.data.decode.to_rgb", give_up)
    with pytest.raises(MemoryError):
        load_image(tmp_path / "photo.png", 3)


def _half_a_jpeg(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _bomb(path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 14000, 14000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_half_a_jpeg, r"truncated"),
        (lambda path: path.write_bytes(b""), "no image format that is read, 0 bytes"),
        (lambda path: path.write_text("not an image"), "no image format that is read, 12 bytes"),
        (lambda _: None, "No such file or directory"),
    ],
    ids=["half a JPEG", "0 bytes", "text", "missing"],
)
def test_unreadable_files_are_named(damage: Callable[[Path], object], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    damage(path)
    with pytest.raises(
        DataError, match=rf"photo\.jpg: cannot be decoded \(.*{reason}.*\) -> replace or remove the file"
    ):
        load_image(path, 3)


@pytest.mark.parametrize("limit", [100_000_000, 195_999_999, 1000])
def test_an_image_that_is_too_large_is_named(limit: int, tmp_path: Path) -> None:
    _bomb(tmp_path / "photo.png")
    fix = r"scale it down or remove it, or raise dataset\.max_pixels"
    with pytest.raises(DataError, match=rf"photo\.png: 196,000,000 pixels, dataset.max_pixels is {limit:,} -> {fix}"):
        load_image(tmp_path / "photo.png", 3, limit)
