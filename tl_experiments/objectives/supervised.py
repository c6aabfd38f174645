"""Cross-entropy on labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tl_experiments.config.optimization import Supervised
from tl_experiments.types import Batch


@dataclass(frozen=True)
class SupervisedObjective:
    """Cross-entropy with label smoothing (Szegedy et al., 2016).

    Args:
        label_smoothing: Share of the target spread evenly over all classes, in [0, 1).
        class_weight: Of each class's images in the loss, ``(n_classes,)``; None weighs all equally. As in torch, the
            mean divides by the weights of the batch's labels, and by its images where labels are mixed.
    """

    label_smoothing: float
    class_weight: Tensor | None = None

    def loss(self, model: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
        """Mean loss of a batch, a scalar in float32; against the mixed labels where it has them."""
        logits = model(batch).float()
        target = batch["target"] if "target" in batch else batch["label"]
        return functional.cross_entropy(
            logits, target, weight=self._weight(logits.device), label_smoothing=self.label_smoothing
        )

    def total_weight(self, batch: Batch) -> Tensor | float:
        """Weights of the batch's labels, or its images."""
        weight = None if "target" in batch else self._weight(batch["label"].device)
        return len(batch["label"]) if weight is None else weight[batch["label"]].sum()

    def _weight(self, device: torch.device) -> Tensor | None:
        return None if self.class_weight is None else self.class_weight.to(device, non_blocking=True)


def build_objective(cfg: Supervised, labels: Tensor, n_classes: int) -> SupervisedObjective:
    """The objective of a config.

    Args:
        cfg: Of the objective.
        labels: Of the training images that are used, int64 ``(n,)``.
        n_classes: C.
    """
    balanced = cfg.class_weights == "balanced"
    return SupervisedObjective(cfg.label_smoothing, balanced_weights(labels, n_classes) if balanced else None)


def balanced_weights(labels: Tensor, n_classes: int) -> Tensor:
    """``n / (n_classes * n_of_class)``, float32 ``(n_classes,)``, so that classes weigh equally (King & Zeng, 2001).

    Args:
        labels: int64 ``(n,)``, each class at least once.
        n_classes: C.
    """
    counts = torch.bincount(labels, minlength=n_classes)
    # a class without images, which a debug run may have, is never weighed
    return (len(labels) / (n_classes * counts.clamp(min=1).double())).float()
