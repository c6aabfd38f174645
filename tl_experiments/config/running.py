"""Choices of the groups ``debug`` and ``feature_cache``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tl_experiments.config.ranges import require


@dataclass(frozen=True, kw_only=True)
class Debug:
    """Ways to look into a run.

    Args:
        traceback: Show tracebacks.
        images_per_split: Use no more than this many images of each split.
        evaluate_on_train: Val and test are the training images.
        profile: Profile a few training steps.
    """

    name: Literal["none", "traceback", "limit", "overfit", "profile"]
    traceback: bool
    images_per_split: int | None
    evaluate_on_train: bool
    profile: bool

    def __post_init__(self) -> None:
        images = self.images_per_split
        require(images is None or images > 0, "images_per_split", images, "1 or more, or null")

    @property
    def no_result(self) -> bool:
        """Whether the run's numbers say nothing about its arm."""
        return self.images_per_split is not None or self.evaluate_on_train or self.profile


@dataclass(frozen=True, kw_only=True)
class _CacheOptions:
    """What every choice has: decoded images are kept in any case.

    Args:
        dir: Folder of decoded images and activations; null is ``.cache`` in ``output_dir``.
        max_bytes: Most that the folder may hold; what was used least recently makes room.
    """

    dir: str | None
    max_bytes: int

    def __post_init__(self) -> None:
        require(self.max_bytes >= 0, "max_bytes", self.max_bytes, "0 or more")


@dataclass(frozen=True, kw_only=True)
class FeatureCacheAuto(_CacheOptions):
    """What a phase freezes is computed once an image and kept, wherever that changes no result.

    Args:
        views: Random views of each training image that are kept where images are augmented; epochs go through them in
            turn. Null keeps none: augmented images train live.
        dtype: Keep floating-point activations in half precision, which changes results; null as they were computed.
        hold_max_bytes: Hold activations, and on a GPU images too, in the memory of the device up to this size, and
            above it read them from the memory-mapped file; null is half of what a GPU has free, or an eighth of the
            machine's memory.
    """

    name: Literal["auto"]
    views: int | None
    dtype: Literal["float16", "bfloat16"] | None
    hold_max_bytes: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        hold = self.hold_max_bytes
        require(hold is None or hold >= 0, "hold_max_bytes", hold, "0 or more, or null")
        require(self.views is None or self.views > 0, "views", self.views, "1 or more, or null")


@dataclass(frozen=True, kw_only=True)
class FeatureCacheOff(_CacheOptions):
    """Every step computes the frozen part of the backbone anew."""

    name: Literal["off"]
    views: ClassVar[None] = None
    dtype: ClassVar[None] = None


FeatureCache = FeatureCacheAuto | FeatureCacheOff
