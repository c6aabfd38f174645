"""The choice of the group ``backbone``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tl_experiments.config.ranges import require

Interpolation = Literal["bilinear", "bicubic", "nearest", "lanczos"]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes the backbone's input; null means as the backbone was pretrained.

    Args:
        image_size: Side of the square input in pixels.
        mean: Of pixel values in [0, 1], one number a channel; null averages the pretrained ones where the images have
            another number of channels.
        std: The same.
        interpolation: ``bilinear``, ``bicubic``, ``nearest`` or ``lanczos``.
        crop_fraction: Side of the central crop as a share of the resized short side, in (0, 1].
    """

    image_size: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    interpolation: Interpolation | None
    crop_fraction: float | None

    def __post_init__(self) -> None:
        require(self.image_size is None or self.image_size > 0, "image_size", self.image_size, "a number above 0")
        require(self.std is None or min(self.std, default=1) > 0, "std", self.std, "numbers above 0")
        require(
            self.crop_fraction is None or 0 < self.crop_fraction <= 1, "crop_fraction", self.crop_fraction, "(0, 1]"
        )


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Any timm model by ``name``.

    Args:
        weights: ``pretrained`` (timm's, from the hub), ``random``, or a path: a ``.safetensors`` or ``.pth`` file, or
            the folder of an earlier run.
        kwargs: Handed to ``timm.create_model``.
    """

    name: str
    weights: str
    kwargs: Mapping[str, Any]
    preprocessing: Preprocessing
