"""An image file as upright 8 bits a channel, whatever it was stored as."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from tl_experiments.data.items import Picture
from tl_experiments.errors import DataError

ARRAY = ".npy"
_LARGEST_16_BIT = 65535


def load_image(path: Path, channels: int) -> Picture:
    """Decode the whole file; see ``to_rgb`` for what becomes of the pixels.

    Of an animation or a document the first picture is taken. An array, ``.npy``, is taken as it is.

    Args:
        path: An image that Pillow reads, or an array.
        channels: 3 is colour, 1 grey, 4 colour with transparency; any other number is an array's.

    Returns:
        Mode L, RGB or RGBA; of an array with other than 1 or 3 channels, the array.

    Raises:
        DataError: The file cannot be read or decoded, is cut short, or is so large that Pillow refuses it (more than
            twice ``PIL.Image.MAX_IMAGE_PIXELS``, found in the header before memory is taken), or has another number of
            channels.
    """
    is_array = path.suffix.lower() == ARRAY
    if not is_array and channels not in (1, 3, 4):
        what = f"an image file, expected an array of {channels} channels"
        raise DataError(str(path), what, "store it as .npy, or correct dataset.channels (3 colour, 1 grey)")
    try:
        if is_array:
            array = _load_array(path)
        else:
            with Image.open(path) as image:
                return {1: to_grey, 3: to_rgb, 4: to_rgba}[channels](image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise nearly everything on damaged files
        raise DataError(
            str(path), f"cannot be decoded ({_reason(error, path)})", "replace or remove the file"
        ) from error
    if array.shape[2] != channels:
        what = f"an array of {array.shape[2]} channels, expected {channels}"
        raise DataError(str(path), what, f"dataset.channels={array.shape[2]}, or replace the file")
    if channels in (1, 3):
        return Image.fromarray(array[:, :, 0] if channels == 1 else array)
    return array


def _load_array(path: Path) -> NDArray[np.uint8]:
    array = np.load(path, allow_pickle=False)  # a pickle would run code
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 3 or not array.size:
        seen = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{seen}, expected uint8 (height, width, channels)")
    return array


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an image upright and convert it to RGB.

    The EXIF orientation is applied; 16-bit grey is scaled to 8 bits (PIL alone cuts it off at 255); transparency is
    laid on white (PIL alone drops it and shows whatever colour is stored under it); palettes, grey and CMYK are
    converted.

    Raises:
        ValueError: The mode has no conversion, or no known range (32-bit integers and floating point).
    """
    upright = ImageOps.exif_transpose(image)
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
    upright = ImageOps.exif_transpose(image)
    return upright.convert("RGBA") if upright.has_transparency_data else to_rgb(image).convert("RGBA")


def _grey_to_8_bit(image: Image.Image) -> Image.Image:
    # Pillow gives 16-bit files as I;16 or, in older versions and some formats, as 32-bit I
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > _LARGEST_16_BIT:
        raise ValueError(f"mode {image.mode}, values {pixels.min()} to {pixels.max()}, expected 8 or 16 bits a channel")
    return Image.fromarray(np.rint(pixels * (255 / _LARGEST_16_BIT)).astype(np.uint8))


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"no image format that Pillow knows, {path.stat().st_size} bytes"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
