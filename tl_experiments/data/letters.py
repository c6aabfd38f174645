"""Capital letters rendered from matplotlib's fonts, looking like the 8x8 digits: a source task without a download."""

from __future__ import annotations

import string
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tl_experiments.data.items import Item, Source, grey_image, pixels

# Text faces only: matplotlib also ships mathematical symbols and display variants with no or odd capitals.
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmb10", "cmss10", "cmtt10"),
)
_FINE_SIZE = 64  # side in pixels that letters are drawn at, at least, before they are averaged down
_STROKES = (0.0, 0.02, 0.04)  # extra width on each side of a line, as a share of the image's side


def open_letters(images_per_class: int, size: int, render_seed: int) -> Source:
    """26 capital letters, white on black, not split.

    Image ``k`` of a letter depends on nothing but ``size``, ``render_seed``, the letter and ``k``: asking for more
    images leaves the first ones as they are. The fingerprint covers the rendered pixels, which change with the
    versions of matplotlib and FreeType.

    Args:
        images_per_class: Images of each letter.
        size: Side of the images in pixels, 8 or more.
        render_seed: Seed of font, stroke, height, width, slant, angle, position, blur, brightness and noise.
    """
    classes = tuple(string.ascii_uppercase)
    keys = [(label, number) for label in range(len(classes)) for number in range(images_per_class)]
    images = np.stack([render(classes[label], size, [render_seed, label, number]) for label, number in keys])
    items = tuple(Item(f"letters/{classes[label]}/{number}", label) for label, number in keys)
    options = f"size={size} render_seed={render_seed}".encode()
    return Source(classes, items, partial(grey_image, images), partial(pixels, images, options), decoded_in_memory=True)


def render(letter: str, size: int, seed: list[int]) -> NDArray[np.uint8]:
    """One letter in a random font and pose, uint8 ``(size, size)``, white on black.

    It is drawn at 64 pixels or more and averaged down by area, so that at 8x8 it has the grey levels of a digit.
    """
    random = np.random.default_rng(seed)
    scale = max(2, -(-_FINE_SIZE // size))
    fine = size * scale
    glyph = _glyph(letter, FONTS[random.integers(len(FONTS))], random.choice(_STROKES), fine)
    posed = glyph.transform((fine, fine), Image.Transform.AFFINE, _pose(random, glyph, fine), Image.Resampling.BILINEAR)
    blurred = posed.filter(ImageFilter.BoxBlur(random.uniform(0.0, 0.03) * fine))
    small = np.asarray(blurred.reduce(scale), dtype=np.float64)
    noisy = small * random.uniform(0.8, 1.1) + random.normal(0.0, 6.0, small.shape)
    # pixels without ink stay black, as they do in the digits
    return np.rint(np.clip(np.where(small > 2, noisy, 0.0), 0, 255)).astype(np.uint8)


def _pose(random: np.random.Generator, glyph: Image.Image, fine: int) -> tuple[float, ...]:
    """Inverse affine map, from a pixel of the image to one of the glyph, as PIL takes it."""
    left, _, right, _ = glyph.getbbox() or (0, 0, fine, fine)
    angle = np.deg2rad(random.normal(0.0, 8.0))
    height = random.uniform(0.8, 1.0)
    width = random.uniform(0.6, 1.0) * min(1.0, fine / (right - left))  # an M or W is wider than the image
    slant = random.normal(0.0, 0.12)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse = np.linalg.inv(rotation @ np.array([[width, slant], [0.0, height]]))
    centre = fine / 2 + random.normal(0.0, 0.03, 2) * fine
    offset = glyph.width / 2 - inverse @ centre
    return (*inverse[0], offset[0], *inverse[1], offset[1])


@cache
def _glyph(letter: str, font: str, stroke: float, fine: int) -> Image.Image:
    """The upright letter, as high as ``fine``, in the middle of a square with room for every pose."""
    side = 2 * fine
    image = Image.new("L", (side, side))
    face = _face(font, fine)
    width = round(stroke * fine)
    left, top, right, bottom = face.getbbox(letter, stroke_width=width)
    corner = ((side - left - right) / 2, (side - top - bottom) / 2)
    ImageDraw.Draw(image).text(corner, letter, fill=255, font=face, stroke_width=width)
    return image


@cache
def _face(font: str, fine: int) -> ImageFont.FreeTypeFont:
    """The font at the size whose capitals are ``fine`` pixels high."""
    import matplotlib

    path = str(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf"))
    _, top, _, bottom = ImageFont.truetype(path, 1000).getbbox("H")
    return ImageFont.truetype(path, fine * 1000 / (bottom - top))
