"""A model ready to predict, whatever it is loaded from: a run, or what was exported of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tl_experiments.backbones.timm_backbone import InputSpec
from tl_experiments.data.decode import MAX_PIXELS, load_image, to_grey, to_rgb, to_rgba
from tl_experiments.data.items import Picture
from tl_experiments.data.transforms import Geometry, eval_transform
from tl_experiments.errors import DataError

Loadable = Path | str | Image.Image | NDArray[np.uint8]


@dataclass(frozen=True)
class LoadedModel:
    """Images to classes, as the run was tested.

    Args:
        classes: Class names in label order: those that the model was trained on.
        preprocessing: What its images go through; mean and std are applied inside ``logits``.
        logits: uint8 images ``(n, channels, image_size, image_size)`` on the CPU -> float32 ``(n, n_classes)``, there.
        notes: What a reader of its predictions should know, in whole sentences.
        max_pixels: Of the largest file that is decoded, ``dataset.max_pixels`` of the run.
    """

    classes: tuple[str, ...]
    preprocessing: InputSpec
    logits: Callable[[Tensor], Tensor]
    notes: tuple[str, ...] = ()
    max_pixels: int = MAX_PIXELS

    def read(self, path: Path) -> Picture:
        """Decode a file with the channels of the model.

        Raises:
            DataError: It cannot be decoded, or has other channels.
        """
        return load_image(path, self.preprocessing.channels, self.max_pixels)

    def prepare(self, picture: Picture) -> Tensor:
        """Resize and crop as in training: uint8 ``(channels, image_size, image_size)``.

        Raises:
            DataError: The picture has other channels.
        """
        spec = self.preprocessing
        image = eval_transform(picture, Geometry(spec.image_size, spec.interpolation, spec.crop_fraction))
        if image.shape[0] != spec.channels:
            what = f"{image.shape[0]} channels, the model takes {spec.channels}"
            raise DataError("image", what, "convert it, or use a model of such images")
        return image

    def probabilities(self, images: Tensor) -> NDArray[np.float64]:
        """Of a batch that ``prepare`` made, ``(n, n_classes)``; each row sums to 1."""
        probabilities: NDArray[np.float64] = self.logits(images).double().softmax(1).numpy()
        return probabilities

    def predict_proba(self, images: Sequence[Loadable] | Loadable) -> NDArray[np.float64]:
        """The probability of each class, ``(n, n_classes)``.

        Args:
            images: Paths, PIL images of any mode, or uint8 arrays ``(height, width, channels)``; computed as one batch.
                One alone is a batch of one.

        Raises:
            DataError: One cannot be decoded, or has other channels than the model takes.
        """
        if isinstance(images, (str, Path, Image.Image)) or (isinstance(images, np.ndarray) and images.ndim == 3):
            images = [images]
        if not len(images):
            return np.empty((0, len(self.classes)))
        return self.probabilities(torch.stack([self.prepare(self._picture(image)) for image in images]))

    def predict(self, images: Sequence[Loadable] | Loadable) -> list[str]:
        """The name of each image's most probable class; see ``predict_proba``."""
        return [self.classes[label] for label in self.predict_proba(images).argmax(1)]

    def _picture(self, image: Loadable) -> Picture:
        if isinstance(image, (str, Path)):
            return self.read(Path(image))
        channels = self.preprocessing.channels
        convert: dict[int, Any] = {1: to_grey, 3: to_rgb, 4: to_rgba}
        if isinstance(image, Image.Image):
            if channels not in convert:
                raise DataError("image", f"a picture, the model takes arrays of {channels} channels", "give an array")
            return convert[channels](image)
        if image.dtype != np.uint8 or image.ndim != 3:
            what = f"{image.dtype} {image.shape}, expected uint8 (height, width, channels)"
            raise DataError("image", what, "convert the array")
        if image.shape[2] in (1, 3):  # resized as the file of such an image would be
            return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        return image
