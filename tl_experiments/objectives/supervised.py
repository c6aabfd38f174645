"""Cross-entropy on labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from tl_experiments.config.optimization import Supervised
from tl_experiments.types import Batch, Objective


@dataclass(frozen=True)
class SupervisedObjective:
    """Cross-entropy with label smoothing (Szegedy et al., 2016).

    Args:
        label_smoothing: Share of the target spread evenly over all classes, in [0, 1).
    """

    label_smoothing: float

    def loss(self, model: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
        """Mean loss of a batch, a scalar in float32; against the mixed labels where it has them."""
        logits = model(batch).float()
        target = batch["target"] if "target" in batch else batch["label"]
        return functional.cross_entropy(logits, target, label_smoothing=self.label_smoothing)


def build_objective(cfg: Supervised) -> Objective:
    """The objective of a config."""
    return SupervisedObjective(cfg.label_smoothing)
