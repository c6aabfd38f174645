"""Predictions of a split and the numbers computed from them, all at once: a mean of batch means would be wrong."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tl_experiments.errors import DivergedError


def first_non_finite(losses: Tensor) -> int | None:
    """Position of the first loss that is not a number, of ``(n,)``."""
    finite = torch.isfinite(losses)
    return None if finite.all() else int((~finite).nonzero()[0])


def diverged(what: str) -> DivergedError:
    """The error of a run whose numbers ran away."""
    return DivergedError("training", what, "lower optimizer.lr or optimizer.lr_factor")


@dataclass(frozen=True)
class Predictions:
    """A model's outputs on a split.

    Args:
        index: Item numbers, ``(n,)``.
        label: True labels, ``(n,)``.
        logits: float32 ``(n, n_classes)``, on the CPU.
    """

    index: Tensor
    label: Tensor
    logits: Tensor

    def finite(self) -> bool:
        """Whether every output is a number. ``argmax`` of NaN is class 0, which can look like a fine accuracy."""
        return bool(torch.isfinite(self.logits).all())

    def metrics(self) -> dict[str, float]:
        """``accuracy``, ``macro_f1`` (over the classes that the split has), both in [0, 1], and ``nll`` in nats."""
        # torchmetrics takes half a second to import, and heads on fixed features do without
        from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

        n_classes = self.logits.shape[1]
        predicted = self.logits.argmax(1)
        accuracy = multiclass_accuracy(predicted, self.label, n_classes, average="micro")
        per_class = multiclass_f1_score(predicted, self.label, n_classes, average="none")
        present = torch.bincount(self.label, minlength=n_classes) > 0
        return {
            "accuracy": float(accuracy),
            "macro_f1": float(per_class[present].mean()),
            "nll": float(functional.cross_entropy(self.logits.double(), self.label)),
        }
