"""From an image to the uint8 square that a backbone takes. Normalisation is the model's, on its device."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from tl_experiments.config.augmentations import Augmentation, NoAugmentation, RandAugment, Trivial
from tl_experiments.data.items import Picture

Transform = Callable[[Picture], Tensor]


@dataclass(frozen=True)
class Geometry:
    """The square that a backbone sees.

    Args:
        image_size: Side in pixels.
        interpolation: Of every resize; all but ``nearest`` average where an image shrinks.
        crop_fraction: Side of the central crop as a share of the resized short side, in (0, 1].
    """

    image_size: int
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos"]
    crop_fraction: float


def eval_transform(image: Picture, geometry: Geometry) -> Tensor:
    """Resize the short side to ``image_size / crop_fraction`` and take the centre, as timm does.

    Args:
        image: Mode L, RGB or RGBA, or uint8 ``(height, width, channels)``, whose channels are each treated as grey.
        geometry: Of the result.

    Returns:
        uint8 ``(channels, image_size, image_size)``.
    """
    if not isinstance(image, Image.Image):
        channels = (Image.fromarray(image[:, :, number]) for number in range(image.shape[2]))
        return torch.cat([eval_transform(channel, geometry) for channel in channels])
    size = geometry.image_size
    short = math.floor(size / geometry.crop_fraction)  # rounded down, as in timm
    # the long side is rounded down and the corner to even, as in torchvision
    width, height = (short if side == min(image.size) else int(short * side / min(image.size)) for side in image.size)
    resized = image.resize((width, height), Image.Resampling[geometry.interpolation.upper()])
    left, top = round((width - size) / 2), round((height - size) / 2)
    cropped = resized.crop((left, top, left + size, top + size))
    return cast(Tensor, v2.functional.pil_to_tensor(cropped))


def train_transform(augmentation: Augmentation, geometry: Geometry, nearest: str = "nearest") -> Transform:
    """The transform of training images, which is that of evaluation where nothing is augmented.

    A random one draws from torch's global generator: call it inside ``seeded``.

    Args:
        augmentation: What is random.
        geometry: Of the result.
        nearest: torchvision's name of the interpolation that ``geometry`` calls nearest.
    """
    if isinstance(augmentation, NoAugmentation):
        return partial(eval_transform, geometry=geometry)
    interpolation = nearest if geometry.interpolation == "nearest" else geometry.interpolation
    return v2.Compose(
        [
            _arrays_to_tensors,
            v2.RandomResizedCrop(
                geometry.image_size,
                scale=(augmentation.min_area, 1.0),
                interpolation=v2.InterpolationMode(interpolation),
            ),
            v2.RandomHorizontalFlip(augmentation.flip_probability),
            *_operations(augmentation),
            v2.PILToTensor(),
        ]
    )


def tensor_transform(augmentation: Augmentation, geometry: Geometry) -> Callable[[Tensor], Tensor] | None:
    """``train_transform`` for uint8 tensors ``(channels, height, width)`` on any device, with the same draws.

    None where torchvision has none: without anything random, and for Lanczos, which only Pillow has. Pixels differ from
    Pillow's by its rounding between the two axes of a resize.
    """
    if isinstance(augmentation, NoAugmentation) or geometry.interpolation == "lanczos":
        return None
    return cast(Callable[[Tensor], Tensor], train_transform(augmentation, geometry, "nearest-exact"))


def _operations(augmentation: Augmentation) -> list[v2.Transform]:
    """What follows the crop, for one image; mixing is a batch's."""
    match augmentation:
        case Trivial():
            return [v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR)]
        case RandAugment():
            bilinear = v2.InterpolationMode.BILINEAR
            return [v2.RandAugment(augmentation.num_ops, augmentation.magnitude, interpolation=bilinear)]
        case _:
            return []


def _arrays_to_tensors(image: Picture | Tensor) -> Image.Image | Tensor:
    return image if isinstance(image, (Image.Image, Tensor)) else torch.from_numpy(image.transpose(2, 0, 1).copy())


def sample_seed(seed: int, epoch: int, index: int, view: int = 0) -> int:
    """Seed of one view of one image in one epoch: the same in whichever worker it is made.

    Args:
        seed: The run's.
        epoch: Counted from 0.
        index: The item's position in its source.
        view: Counted from 0, where an image is shown more than once.

    Returns:
        A hash of all four, in [0, 2^63).
    """
    text = f"{seed} {epoch} {index} {view}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from ``seed`` inside the block, and leave torch's generators as they were."""
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed, which would also seed the GPUs' generators, and they are not forked
        torch.default_generator.manual_seed(seed)
        yield
