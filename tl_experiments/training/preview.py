"""Training images as a model sees them, side by side in one picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tl_experiments.backbones.timm_backbone import input_spec
from tl_experiments.config.schema import TrainConfig
from tl_experiments.data.datamodule import TransferDataModule
from tl_experiments.data.mixing import mixed
from tl_experiments.data.splits import Indices
from tl_experiments.safe_text import plain
from tl_experiments.seeds import derive
from tl_experiments.training.build import open_data, open_listed

_INCHES = 1.5  # side of an image in the picture
_NAME = 22  # characters of a class name that a column holds


def preview(cfg: TrainConfig, images: int, views: int) -> bytes:
    """A PNG: a row an image, as it is and in several random views of ``cfg.augmentation``.

    The first column is what validation sees of the image. Views are those of the first epochs of a run that shows the
    images in this order; where images are mixed, each is mixed with the one above it.

    Args:
        cfg: Dataset, augmentation, and the backbone for whose input the images are cut.
        images: Rows, of different classes as far as there are.
        views: Columns beside the first.

    Raises:
        UserError: Whatever is wrong with the data, or with the backbone's options.
    """
    data = open_data(cfg, open_listed(cfg, input_spec(cfg.backbone, cfg.dataset.channels)))
    chosen = _spread(data, min(images, data.items("train").size), cfg.seed)
    labels = data.labels(chosen)
    names = data.spec.classes
    plain_views = data.images(chosen)
    columns = [("as it is", plain_views.float(), _one_hot(labels, len(names)))]
    for view in range(views):
        columns.append((f"view {view + 1}", *_augmented(cfg, data, chosen, labels, view)))
    return _drawn(f"{cfg.dataset.name}, augmentation={cfg.augmentation.name}, {data.image_size} px", columns, names)


def _augmented(
    cfg: TrainConfig, data: TransferDataModule, chosen: Indices, labels: Tensor, view: int
) -> tuple[Tensor, Tensor]:
    """Images and shares of the classes, mixed where the augmentation does so."""
    n_classes = len(data.spec.classes)
    batch: Any = {"image": data.images(chosen, view), "label": labels, "index": torch.from_numpy(chosen)}
    (made,) = mixed([batch], n_classes, cfg.augmentation, cfg.seed, view)
    return made["image"].float(), made.get("target", _one_hot(labels, n_classes))


def _one_hot(labels: Tensor, n_classes: int) -> Tensor:
    return torch.nn.functional.one_hot(labels, n_classes).float()


def _spread(data: TransferDataModule, n: int, seed: int) -> Indices:
    """Random training items that take turns over the classes."""
    items = data.items("train")
    order = items[np.random.default_rng(derive(seed, "preview")).permutation(items.size)]
    labels = data.labels(order).numpy()
    turn = np.zeros(len(order), dtype=np.int64)
    for label in np.unique(labels):
        turn[labels == label] = np.arange((labels == label).sum())
    return order[np.argsort(turn, kind="stable")][:n]


def _drawn(title: str, columns: Sequence[tuple[str, Tensor, Tensor]], names: Sequence[str]) -> bytes:
    from matplotlib.figure import Figure

    rows = len(columns[0][1])
    figure = Figure(figsize=(_INCHES * len(columns), (_INCHES + 0.25) * rows + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=10, parse_math=False)
    grid = figure.subplots(rows, len(columns), squeeze=False)
    for column, (heading, images, shares) in enumerate(columns):
        for row in range(rows):
            axes = grid[row, column]
            pixels = _rgb(images[row])
            axes.imshow(pixels, interpolation="nearest")
            axes.set_axis_off()
            text = _classes(shares[row], names)
            axes.set_title(f"{heading}\n{text}" if row == 0 else text, fontsize=7, parse_math=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()


def _rgb(image: Tensor) -> NDArray[np.uint8]:
    """What can be shown of the channels, uint8 ``(height, width, 3 or 4)``."""
    pixels = image.clamp(0, 255).round().byte().permute(1, 2, 0).numpy()
    if pixels.shape[2] in (3, 4):
        return pixels
    first: NDArray[np.uint8] = np.repeat(pixels[:, :, :1], 3, axis=2)
    return first


def _classes(shares: Tensor, names: Sequence[str]) -> str:
    """The class, or the classes with their shares, largest first."""
    there = sorted(((float(share), name) for share, name in zip(shares, names, strict=True) if share > 0), reverse=True)
    if len(there) == 1:
        return _short(there[0][1], _NAME)
    return "\n".join(f"{share:.2f} {_short(name, _NAME - 5)}" for share, name in there)


def _short(name: str, limit: int) -> str:
    text = plain(name)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
