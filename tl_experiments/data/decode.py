"""An image file as upright 8 bits a channel, whatever it was stored as."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tl_experiments.data.items import Picture
from tl_experiments.errors import DataError

ARRAY_FORMAT = "NPY"
MAX_PIXELS = 100_000_000  # where no dataset says how large an image may be
_ARRAY_MAGIC = b"\x93NUMPY"
# A name says nothing about what is inside, and some of Pillow's other readers start programs or fetch files.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_LARGEST_16_BIT = 65535
_ORIENTATION = 0x0112  # of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ``max_pixels`` decides, not a warning from 89 MP on


class TooLargeError(ValueError):
    """More pixels than ``dataset.max_pixels`` allows, told from the header.

    Args:
        pixels: Width times height.
        max_pixels: The limit.
    """

    def __init__(self, pixels: int, max_pixels: int) -> None:
        super().__init__(f"{pixels:,} pixels, dataset.max_pixels is {max_pixels:,}")
        self.pixels = pixels


def load_image(path: Path, channels: int, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode a whole file; see ``to_rgb`` for what becomes of the pixels.

    Of an animation or a document the first picture is taken. An array, ``.npy``, is taken as it is.

    Args:
        path: An image in one of the formats that are read, or an array.
        channels: 3 is colour, 1 grey, 4 colour with transparency; any other number is an array's.
        max_pixels: Width times height of the largest image that is decoded.

    Returns:
        Mode L, RGB or RGBA; of an array with other than 1 or 3 channels, the array.

    Raises:
        DataError: The file cannot be read or decoded, is cut short, has more than ``max_pixels`` by its header, or
            has another number of channels.
    """
    with _blaming(str(path)), path.open("rb") as stream:
        return read_image(stream, channels, max_pixels)


def load_bytes(data: bytes, name: str, channels: int, max_pixels: int = MAX_PIXELS) -> Picture:
    """``load_image`` for a file's bytes; ``name`` stands in the error."""
    with _blaming(name):
        return read_image(io.BytesIO(data), channels, max_pixels)


def read_image(stream: BinaryIO, channels: int, max_pixels: int) -> Picture:
    """``load_image`` for an open file, with whatever exception the damage causes; ``reason`` words it."""
    if is_array(stream):
        array = read_array(stream, max_pixels)
        check_channels(array.shape[2], channels)
        if channels in (1, 3):
            return Image.fromarray(array[:, :, 0] if channels == 1 else array)
        return array
    with open_image(stream, max_pixels) as image:
        check_channels(None, channels)
        return {1: to_grey, 3: to_rgb, 4: to_rgba}[channels](image)


def open_image(stream: BinaryIO, max_pixels: int) -> Image.Image:
    """Read the header and refuse what is too large before memory is taken for it.

    Raises:
        TooLargeError: The header says so.
        Exception: Whatever Pillow's readers raise on damaged files.
    """
    _let_the_limit_decide(max_pixels)
    Image.init()
    try:
        image = Image.open(stream, formats=[name for name in _FORMATS if name in Image.OPEN])
    except Image.DecompressionBombError as error:  # from twice Pillow's own limit on
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        raise TooLargeError(int(pixels[1]) if pixels else 2 * max_pixels, max_pixels) from None
    if image.width * image.height > max_pixels:
        raise TooLargeError(image.width * image.height, max_pixels)
    return image


def is_array(stream: BinaryIO) -> bool:
    """Whether an open file begins as NumPy's do."""
    start = stream.read(len(_ARRAY_MAGIC))
    stream.seek(0)
    return start == _ARRAY_MAGIC


def read_array(stream: BinaryIO, max_pixels: int) -> NDArray[np.uint8]:
    """An array from an open file; what its header says is checked before memory is taken.

    Returns:
        uint8 ``(height, width, channels)``.

    Raises:
        TooLargeError: The header says so.
        ValueError: It is damaged, or another kind of array.
    """
    version = np.lib.format.read_magic(stream)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0}.get(version, np.lib.format.read_array_header_2_0)
    shape, _, dtype = read_header(stream)
    if dtype != np.uint8 or len(shape) != 3 or 0 in shape:
        raise ValueError(f"{dtype} {shape}, expected uint8 (height, width, channels)")
    if shape[0] * shape[1] > max_pixels:
        raise TooLargeError(shape[0] * shape[1], max_pixels)
    start, end = stream.tell(), stream.seek(0, io.SEEK_END)
    wanted = shape[0] * shape[1] * shape[2]
    if end - start < wanted:
        raise ValueError(f"cut short: {end - start:,} of {wanted:,} bytes")
    stream.seek(0)
    array: NDArray[np.uint8] = np.lib.format.read_array(stream, allow_pickle=False)  # a pickle would run code
    return array


def check_channels(array: int | None, channels: int) -> None:
    """Compare what a file holds with what its dataset says.

    Args:
        array: Channels of an array; None of an image file, which is converted to 1, 3 or 4.
        channels: Of the dataset.

    Raises:
        ValueError: The file holds something else.
    """
    if array is None and channels not in (1, 3, 4):
        what = f"an image file, expected an array of {channels} channels"
        raise _ChannelsError(what, "store it as .npy, or correct dataset.channels (3 colour, 1 grey)")
    if array not in (None, channels):
        what = f"an array of {array} channels, expected {channels}"
        raise _ChannelsError(what, f"dataset.channels={array}, or replace the file")


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an image upright and convert it to RGB.

    The EXIF orientation is applied; 16-bit grey is scaled to 8 bits (PIL alone cuts it off at 255); transparency is
    laid on white (PIL alone drops it and shows whatever colour is stored under it); palettes, grey and CMYK are
    converted. Of 16 bits a channel in colour Pillow keeps the upper 8. Colour profiles are not applied: the numbers
    are taken as sRGB, as the pretrained weights have seen them.

    Raises:
        ValueError: The mode has no conversion, or no known range (32-bit integers and floating point).
    """
    upright = _turned(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        return _grey_to_8_bit(upright).convert("RGB")
    if upright.has_transparency_data:
        coloured = upright.convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        return Image.alpha_composite(white, coloured).convert("RGB")
    return upright.convert("RGB")


def to_grey(image: Image.Image) -> Image.Image:
    """Like ``to_rgb``, then the luma of the colours (ITU-R 601-2); grey stays as it is."""
    return to_rgb(image).convert("L")


def to_rgba(image: Image.Image) -> Image.Image:
    """Like ``to_rgb``, but transparency is kept; an image without any is opaque."""
    upright = _turned(image)
    return upright.convert("RGBA") if upright.has_transparency_data else to_rgb(image).convert("RGBA")


def reason(error: Exception, size: int) -> str:
    """Why a file cannot be decoded, in a few words.

    Args:
        error: What reading it raised.
        size: Of the file in bytes.
    """
    if isinstance(error, UnidentifiedImageError):
        return f"no image format that is read, {size} bytes"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


class _ChannelsError(ValueError):
    """A sound file of the wrong kind: another number of channels."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.fix = fix


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except _ChannelsError as error:
        raise DataError(name, str(error), error.fix) from error
    except TooLargeError as error:
        raise DataError(name, str(error), "scale it down or remove it, or raise dataset.max_pixels") from error
    except Exception as error:  # Pillow's readers raise nearly everything on damaged files
        size = 0
        with suppress(OSError):
            size = Path(name).stat().st_size
        what = f"cannot be decoded ({reason(error, size)})"
        raise DataError(name, what, "replace or remove the file") from error


def _let_the_limit_decide(max_pixels: int) -> None:
    """Pillow refuses images from twice its own limit on, one of the whole process: raise it where ours is higher."""
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels


def _turned(image: Image.Image) -> Image.Image:
    image.load()  # in some formats the orientation stands behind the pixels
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data around sound pixels, which Pillow answers with nearly everything
        return image
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _grey_to_8_bit(image: Image.Image) -> Image.Image:
    # Pillow gives 16-bit files as I;16 or, in older versions and some formats, as 32-bit I
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > _LARGEST_16_BIT:
        raise ValueError(f"mode {image.mode}, values {pixels.min()} to {pixels.max()}, expected 8 or 16 bits a channel")
    return Image.fromarray(np.rint(pixels * (255 / _LARGEST_16_BIT)).astype(np.uint8))
