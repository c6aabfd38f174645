"""Choices of the group ``augmentation``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tl_experiments.config.ranges import require


@dataclass(frozen=True, kw_only=True)
class NoAugmentation:
    """Training images as they are."""

    name: Literal["none"]


@dataclass(frozen=True, kw_only=True)
class _CropOptions:
    """Random resized crop and horizontal flip, with which every augmentation begins.

    Args:
        min_area: Smallest share of the image's area in a crop, in (0, 1].
        flip_probability: In [0, 1].
    """

    min_area: float
    flip_probability: float

    def __post_init__(self) -> None:
        require(0 < self.min_area <= 1, "min_area", self.min_area, "(0, 1]")
        require(0 <= self.flip_probability <= 1, "flip_probability", self.flip_probability, "[0, 1]")


@dataclass(frozen=True, kw_only=True)
class FlipCrop(_CropOptions):
    """Random resized crop and horizontal flip."""

    name: Literal["flip_crop"]


@dataclass(frozen=True, kw_only=True)
class Trivial(_CropOptions):
    """TrivialAugmentWide (Müller & Hutter, 2021): one operation an image, at random strength."""

    name: Literal["trivial"]


@dataclass(frozen=True, kw_only=True)
class RandAugment(_CropOptions):
    """RandAugment (Cubuk et al., 2020): some operations an image, all at one strength.

    Args:
        num_ops: Operations an image, 1 or more.
        magnitude: Their strength, 0 (none) to 30.
    """

    name: Literal["randaugment"]
    num_ops: int
    magnitude: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_ops > 0, "num_ops", self.num_ops, "1 or more")
        require(0 <= self.magnitude <= 30, "magnitude", self.magnitude, "0 to 30")


@dataclass(frozen=True, kw_only=True)
class _MixingOptions(_CropOptions):
    """What mixes the images and labels of a batch in pairs.

    Args:
        alpha: Both parameters of the Beta distribution of an image's share in its mixture, above 0: small ones leave
            most images nearly as they are, 1 makes all shares equally likely.
    """

    alpha: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha > 0, "alpha", self.alpha, "a number above 0")


@dataclass(frozen=True, kw_only=True)
class MixUp(_MixingOptions):
    """mixup (Zhang et al., 2018): weighted means of two images and of their labels."""

    name: Literal["mixup"]


@dataclass(frozen=True, kw_only=True)
class CutMix(_MixingOptions):
    """CutMix (Yun et al., 2019): a rectangle of one image in another; labels by area."""

    name: Literal["cutmix"]


Augmentation = NoAugmentation | FlipCrop | Trivial | RandAugment | MixUp | CutMix
