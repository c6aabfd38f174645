"""What stands on the features and is always new: heads."""

from __future__ import annotations

import torch
from torch import nn

from tl_experiments.config.heads import Head

__all__ = ["build_head"]


def build_head(cfg: Head, feature_dim: int, n_classes: int, seed: int) -> nn.Module:
    """A new head, features ``(n, feature_dim)`` to logits ``(n, n_classes)``.

    Its weights start small and its biases at zero, the same for every arm under one seed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {"linear": _linear}[cfg.name](feature_dim, n_classes)


def _linear(feature_dim: int, n_classes: int) -> nn.Module:
    head = nn.Linear(feature_dim, n_classes)
    nn.init.trunc_normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head
