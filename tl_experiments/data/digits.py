"""Handwritten digits that come with scikit-learn: real data without a download."""

from __future__ import annotations

from functools import partial

import numpy as np

from tl_experiments.data.items import Item, Source, grey_image, pixels

_BRIGHTEST = 16  # pixels of the original run from 0 to 16


def open_digits() -> Source:
    """The 1,797 digits of ``sklearn.datasets.load_digits``, 8x8 pixels, white on black, not split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / _BRIGHTEST)).astype(np.uint8)
    classes = tuple(str(name) for name in bunch.target_names)
    items = tuple(Item(f"digits/{number}", int(label)) for number, label in enumerate(bunch.target))
    return Source(classes, items, partial(grey_image, images), partial(pixels, images), decoded_in_memory=True)
