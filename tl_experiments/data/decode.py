"""An image file as upright 8-bit RGB, whatever it was stored as."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tl_experiments.errors import DataError

_LARGEST_16_BIT = 65535


def load_rgb(path: Path) -> Image.Image:
    """Decode the whole file; see ``to_rgb`` for what becomes of the pixels.

    Of an animation or a document the first picture is taken.

    Raises:
        DataError: The file cannot be read or decoded, is cut short, or is so large that Pillow refuses it (more than
            twice ``PIL.Image.MAX_IMAGE_PIXELS``, found in the header before memory is taken).
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise nearly everything on damaged files
        raise DataError(
            str(path), f"cannot be decoded ({_reason(error, path)})", "replace or remove the file"
        ) from error


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
