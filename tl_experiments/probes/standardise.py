"""Features of mean 0 and deviation 1, and how a head on them becomes one on the features as they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Of the typical deviation; below it a feature is as good as constant and must not be blown up.
_FLOOR = 1e-3


@dataclass(frozen=True)
class Standardisation:
    """What is taken from each feature, and what it is divided by.

    Args:
        mean: ``(D,)``.
        deviation: ``(D,)``, above 0.
    """

    mean: Tensor
    deviation: Tensor

    def apply(self, features: Tensor) -> Tensor:
        """Features ``(n, D)``, standardised."""
        return (features - self.mean) / self.deviation

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Heads ``(..., C, D)`` and ``(..., C)`` on standardised features as heads on the features as they are."""
        folded = weight / self.deviation
        return folded, bias - folded @ self.mean


def standardisation(features: Tensor) -> Standardisation:
    """Of training features ``(n, D)``; sums are taken in float64, the result has the features' dtype.

    A deviation is at least a thousandth of the root mean square of all of them; 1 where every feature is constant.
    """
    deviation, mean = torch.std_mean(features.double(), dim=0, correction=0)
    typical = deviation.square().mean().sqrt()
    deviation = torch.where(typical > 0, deviation.clamp(min=_FLOOR * typical), 1.0)
    return Standardisation(mean.to(features.dtype), deviation.to(features.dtype))
