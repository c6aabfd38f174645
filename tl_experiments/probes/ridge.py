"""Least squares with an L2 penalty, for a whole path of penalties from one decomposition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


@torch.no_grad()
def ridge_path(features: Tensor, labels: Tensor, n_classes: int, penalties: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Heads that minimise ``|XW + b - Y|^2 + n * penalty * |W|^2`` on one-hot labels (Hoerl & Kennard, 1970).

    Everything is computed in float64, from the eigenvectors of the smaller of the two Gram matrices.

    Args:
        features: ``(n, D)``.
        labels: int64 ``(n,)``.
        n_classes: C.
        penalties: P numbers above 0.

    Returns:
        Weights ``(P, C, D)`` and biases ``(P, C)``, of the features' dtype.
    """
    x, y = features.double(), functional.one_hot(labels, n_classes).double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    n, dim = x.shape
    shrinkage = n * x.new_tensor(penalties)[:, None, None]
    primal = dim <= n
    variances, axes = torch.linalg.eigh(x.T @ x if primal else x @ x.T)
    variances = variances.clamp(min=0)  # rounding leaves tiny negative ones
    target = axes.T @ (x.T @ y if primal else y)
    solved = (target / (variances[:, None] + shrinkage)).mT @ axes.T  # (P, C, D), or (P, C, n)
    weight = solved if primal else solved @ x
    return weight.to(features.dtype), (y_mean - weight @ x_mean).to(features.dtype)
