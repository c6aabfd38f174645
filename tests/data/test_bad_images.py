"""Broken, huge and unusual images: named before memory is taken, or turned into the pixels that other readers see."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

from tl_experiments.data.broken import bad_images
from tl_experiments.data.decode import load_bytes, load_image
from tl_experiments.data.image_folder import open_image_folder
from tl_experiments.errors import DataError

MakeFolder = Callable[[dict[str, int]], Path]


def _photo(side: int = 64) -> Image.Image:
    """Smooth colours, so that JPEG keeps them."""
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    return Image.fromarray(np.stack([*np.meshgrid(ramp, ramp), np.full((side, side), 90, np.uint8)], axis=2))


def _encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def _png(width: int, height: int, bits: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Written by hand, since Pillow cannot write every kind; ``rows`` without the filter bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = len(rows) // height if rows else 0
    data = b"".join(b"\0" + rows[start * size : (start + 1) * size] for start in range(height)) if rows else b""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def _half(form: str) -> bytes:
    data = _encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8)), form)
    return data[: len(data) // 2]


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
BROKEN = {
    "half.jpg": (_half("JPEG"), "truncated"),
    "cut.png": (_half("PNG"), "truncated"),
    "nothing.jpg": (b"", "no image format that is read, 0 bytes"),
    "text.jpg": (b"not an image at all", "no image format that is read, 19 bytes"),
    "program.jpg": (POSTSCRIPT, "no image format that is read"),
    "large.png": (_png(14_000, 14_000, 8, 2, b""), "196,000,000 pixels, dataset.max_pixels is 100,000,000"),
}


@pytest.fixture
def spoilt(make_folder: MakeFolder) -> Path:
    """Two classes of three good images each, and the broken ones in the first."""
    root = make_folder({"ants": 3, "bees": 3})
    for name, (data, _) in BROKEN.items():
        (root / "ants" / name).write_bytes(data)
    return root


def test_verify_passes_half_a_jpeg() -> None:
    """The reason why nothing less than decoding will do."""
    Image.open(io.BytesIO(_half("JPEG"))).verify()


def test_each_broken_file_is_found_with_path_and_reason(spoilt: Path) -> None:
    bad = bad_images(open_image_folder(str(spoilt), allow_empty=False))
    assert {one.path for one in bad} == {str(spoilt / "ants" / name) for name in BROKEN}
    for one in bad:
        assert one.problem is not None
        _, reason = BROKEN[Path(one.path).name]
        assert reason in one.problem
    for name, (_, reason) in BROKEN.items():
        with pytest.raises(DataError, match=rf"{name}: .*{reason}"):
            load_image(spoilt / "ants" / name, 3)


def _tiff(width: int, height: int) -> bytes:
    """One uncompressed strip of which the file holds nothing."""
    entries = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    entries += [(278, 4, height), (279, 4, width * height)]
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + struct.pack("<I", 0)


def _gif(width: int, height: int, screen: tuple[int, int] | None = None) -> bytes:
    """A picture of the size, on a screen that may be said to be smaller."""
    small = bytearray(_encoded(Image.new("P", (2, 2)), "GIF"))
    place = small.index(b"\x2c")
    small[place + 5 : place + 9] = struct.pack("<HH", width, height)
    small[6:10] = struct.pack("<HH", *(screen or (width, height)))
    return bytes(small)


def _webp(width: int, height: int) -> bytes:
    """One colour, lossless: the smallest image there is, of any size."""
    small = bytearray(_encoded(Image.new("L", (1, 1)), "WEBP", lossless=True))
    place = small.index(b"VP8L") + 9
    small[place : place + 4] = struct.pack("<I", (width - 1) | (height - 1) << 14)
    return bytes(small)


def _bombs() -> dict[str, bytes]:
    return {
        "bomb.png": _png(14_000, 14_000, 8, 2, b""),
        "bomb.tif": _tiff(20_000, 20_000),
        "bomb.gif": _gif(20_000, 20_000),
        "hidden.gif": _gif(20_000, 20_000, screen=(2, 2)),
        "bomb.webp": _webp(16_000, 16_000),
        "bomb.npy": b"\x93NUMPY\x01\x00\x76\x00"
        + b"{'descr': '|u1', 'fortran_order': False, 'shape': (100000, 100000, 3)}".ljust(117)
        + b"\n",
    }


MEASURED = """
import sys
from pathlib import Path
from tl_experiments.data.broken import bad_images
from tl_experiments.data.image_folder import open_image_folder
bad = bad_images(open_image_folder(sys.argv[1], False))
for one in bad:
    print(one.path.rsplit("/", 1)[1], one.problem)
status = Path("/proc/self/status").read_text()  # unlike getrusage not inherited from the parent
print(int(status.split("VmHWM:")[1].split()[0]) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read the peak of memory from")
def test_bombs_take_no_memory(make_folder: MakeFolder) -> None:
    """All of them at once, in a process of its own: decoded they would take 0.4 to 30 GB each."""
    root = make_folder({"ants": 1, "bees": 1})
    bombs = _bombs()
    for name, data in bombs.items():
        (root / "ants" / name).write_bytes(data)
        assert len(data) < 2_000_000
    call = [sys.executable, "-W", "error", "-c", MEASURED, str(root)]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    *lines, peak = done.stdout.splitlines()
    assert {line.split()[0] for line in lines} == set(bombs)
    assert all("dataset.max_pixels is 100,000,000" in line for line in lines), lines
    assert int(peak) < 500_000_000
    assert done.stderr == ""  # Pillow warns from 89 megapixels on; ours is the limit that decides


def test_a_higher_limit_lets_larger_images_in(tmp_path: Path) -> None:
    """Pillow itself refuses more than 179 megapixels."""
    path = tmp_path / "large.png"
    path.write_bytes(_png(200_000, 1_000, 1, 0, bytes(25_000 * 1_000)))
    with pytest.raises(DataError, match=r"large.png: 200,000,000 pixels, .* -> .*raise dataset.max_pixels"):
        load_image(path, 1)
    assert np.asarray(load_image(path, 1, max_pixels=200_000_000)).shape == (1_000, 200_000)


def _pixels(data: bytes) -> list[list[int]]:
    return np.asarray(load_bytes(data, "image", 3)).reshape(-1, 3).tolist()


_RGB = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255])


def _words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # 16 bits a channel: the upper 8 of colours; grey is scaled and rounded
        (_png(2, 1, 16, 2, _words(0, 257, 65535, 25700, 0x1280, 0xFFFF)), [(0, 1, 255), (100, 0x12, 255)]),
        (_png(3, 1, 16, 0, _words(0, 32896, 65535)), [(0,) * 3, (128,) * 3, (255,) * 3]),
        # with transparency: laid on white
        (_png(2, 1, 16, 6, _words(65535, 0, 0, 65535, 65535, 0, 0, 0)), [(255, 0, 0), (255, 255, 255)]),
        (_png(2, 1, 16, 4, _words(0, 65535, 0, 0)), [(0, 0, 0), (255, 255, 255)]),
        (_png(2, 1, 8, 4, bytes([100, 255, 100, 51])), [(100,) * 3, (224,) * 3]),
        # a palette with a transparency for each of its colours
        (
            _png(3, 1, 8, 3, bytes([0, 1, 2]), (b"PLTE", _RGB), (b"tRNS", bytes([255, 0, 51]))),
            [(255, 0, 0), (255, 255, 255), (204, 204, 255)],
        ),
        # one colour that is transparent
        (_png(2, 1, 8, 2, bytes([9, 8, 7, 1, 2, 3]), (b"tRNS", _words(9, 8, 7))), [(255, 255, 255), (1, 2, 3)]),
        (_png(2, 1, 8, 0, bytes([9, 50]), (b"tRNS", _words(9))), [(255, 255, 255), (50, 50, 50)]),
        (_png(4, 1, 2, 0, bytes([0b00011011])), [(0,) * 3, (85,) * 3, (170,) * 3, (255,) * 3]),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_pixels_of_files_written_by_hand(data: bytes, expected: Sequence[tuple[int, ...]]) -> None:
    assert _pixels(data) == [list(pixel) for pixel in expected]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4)])
def test_colour_pngs_agree_with_another_reader(bits: int, colour: int, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**bits, (8, 9, channels)).astype(f">u{bits // 8}")
    if channels == 4:
        values[:, :, 3] = 2**bits - 1
    data = _png(9, 8, bits, colour, values.tobytes())
    reference = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    ours = np.asarray(load_bytes(data, "image", 3)).transpose(2, 0, 1)
    shift = 8 if reference.dtype == torch.uint16 else 0
    assert np.array_equal(ours, (reference.numpy() >> shift).astype(np.uint8))


def test_cmyk_jpegs_are_inverted_as_adobe_writes_them() -> None:
    """In JPEG files ink is stored inverted; another reader's result, and the colours that the ink was made of."""
    image = _photo()
    data = _encoded(image.convert("CMYK"), "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in data[:40]
    ours = np.asarray(load_bytes(data, "image", 3)).astype(int)
    reference = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    assert np.abs(ours - reference.permute(1, 2, 0).numpy()).max() <= 2
    assert np.abs(ours - np.asarray(image)).max() <= 6


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(form: str, orientation: int) -> None:
    """One corner is bright; where it must be afterwards is the definition of the tag (EXIF 2.32, section 4.6.5)."""
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    upright = np.asarray(load_bytes(_encoded(Image.fromarray(stored), form, exif=exif, **options), "image", 3))
    assert upright.shape[:2] == ((16, 32) if orientation < 5 else (32, 16))
    # the 0th row and column of the file are this side of the picture
    row, column = [(0, 0), (0, -1), (-1, -1), (-1, 0), (0, 0), (0, -1), (-1, -1), (-1, 0)][orientation - 1]
    corners = {(y, x): int(upright[y, x].mean()) for y in (0, -1) for x in (0, -1)}
    assert corners.pop((row, column)) > 240
    assert max(corners.values()) < 15


def test_damaged_exif_data_costs_no_image() -> None:
    image = _photo()
    data = _encoded(image, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + bytes(3))
    assert np.array_equal(np.asarray(load_bytes(data, "image", 3)), np.asarray(image))


def test_a_colour_profile_is_not_applied() -> None:
    """The numbers are taken as sRGB, whatever the profile says."""
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    image = _photo()
    data = _encoded(image, "PNG", icc_profile=profile)
    assert np.array_equal(np.asarray(load_bytes(data, "image", 3)), np.asarray(image))


def test_the_first_picture_of_an_animation_counts() -> None:
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if form == "WEBP" else {}
        data = _encoded(first, form, save_all=True, append_images=[second], **options)
        assert _pixels(data)[0] == [255, 0, 0]
