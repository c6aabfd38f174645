"""Small pictures of single images, for people: what a report or a tracker shows beside a prediction."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from tl_experiments.config.datasets import Dataset
from tl_experiments.config.typed import typed
from tl_experiments.data.items import Picture
from tl_experiments.data.sources import open_source
from tl_experiments.errors import UserError

SIDE = 160  # pixels of the longer side
_QUALITY = 80
_SMALL = 48  # pixels below which single ones are to be seen


@dataclass(frozen=True)
class _Config:
    """What of a run's config matters here: the rest may be of another version."""

    dataset: Dataset


def pictures(config: Mapping[str, Any], items: Sequence[str], side: int = SIDE) -> dict[str, bytes]:
    """Decode and shrink images of the dataset that a run was trained on; torch is not needed.

    Args:
        config: Of the run, ``RunRecord.config``; through ``located``, where this may be another working directory.
        items: Ids of the images, as in its predictions.
        side: Pixels of the longer side of the result.

    Returns:
        Item -> JPEG, or PNG of images that are smaller than ``side``. Images that are gone or cannot be decoded are
        absent, all of them where the dataset itself is gone.
    """
    try:
        dataset = typed(_Config, {"dataset": config["dataset"]}).dataset
        source = open_source(replace(dataset, on_bad="error"))  # to leave bad files out would be to decode all
    except (UserError, OSError, KeyError):
        return {}
    wanted = set(items)
    places = {item.id: place for place, item in enumerate(source.items) if item.id in wanted}
    found = {}
    for item in items:
        if item in places:
            try:
                found[item] = _encoded(source.load(places[item]), side)
            except (UserError, OSError):
                continue
    return found


def _encoded(picture: Picture, side: int) -> bytes:
    image = _image(picture)
    stream = io.BytesIO()
    if max(image.size) <= _SMALL:
        factor = side // max(image.size)
        image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(stream, "PNG")
    else:
        image.thumbnail((side, side))
        image.save(stream, "JPEG", quality=_QUALITY, optimize=True)
    return stream.getvalue()


def _image(picture: Picture) -> Image.Image:
    """Colour or grey; transparency on white, and of many channels the first three, or the first."""
    if isinstance(picture, Image.Image):
        if picture.mode != "RGBA":
            return picture
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    array = np.ascontiguousarray(picture[:, :, :3] if picture.shape[2] >= 3 else picture[:, :, 0])
    return Image.fromarray(array)
