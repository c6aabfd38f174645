"""Mixtures of the images and labels of a batch: the last step before the model, after any worker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torchvision.transforms import v2

from tl_experiments.config.augmentations import Augmentation, CutMix, MixUp
from tl_experiments.data.transforms import seeded
from tl_experiments.seeds import derive
from tl_experiments.types import Batch


def mix(batch: Batch, n_classes: int, augmentation: MixUp | CutMix, seed: int, step: int) -> Batch:
    """Mix each image with the one before it, the first with the last; all of a batch in the same proportion.

    Args:
        batch: Images in an order that is random already.
        n_classes: 2 or more.
        augmentation: The way of mixing, and its strength.
        seed: The run's; with ``step`` it fixes the proportion, whatever was drawn before.
        step: Optimizer step that trains on the batch, counted from 0 over the whole run.

    Returns:
        The batch with mixed images, by mixup float32 in [0, 255], and ``target``, float32 ``(n, n_classes)`` of rows
        that sum to 1; ``label`` still is what the images were before.
    """
    way = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[augmentation.name]
    image = batch["image"].float() if isinstance(augmentation, MixUp) else batch["image"]
    with seeded(derive(seed, "mixing", step)):
        image, target = way(alpha=augmentation.alpha, num_classes=n_classes)(image, batch["label"])
    return {**batch, "image": image, "target": target}


def mixed(
    batches: Iterable[Batch], n_classes: int, augmentation: Augmentation, seed: int, first_step: int
) -> Iterator[Batch]:
    """The batches of the steps from ``first_step`` on, mixed where the augmentation does so."""
    for step, batch in enumerate(batches, start=first_step):
        if isinstance(augmentation, (MixUp, CutMix)):
            yield mix(batch, n_classes, augmentation, seed, step)
        else:
            yield batch
