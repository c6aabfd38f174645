"""What stands on the features and is always new: heads."""

from __future__ import annotations

import torch
from torch import nn

from tl_experiments.config.heads import KNN, MLP, AttentionPool, Cosine, Head, Linear, Logistic, Ridge
from tl_experiments.heads.attention_pool import AttentionPoolHead
from tl_experiments.heads.cosine import CosineHead
from tl_experiments.heads.knn import KNNHead
from tl_experiments.heads.linear import LinearHead, MLPHead

__all__ = ["build_head"]


def build_head(cfg: Head, feature_dim: int, n_classes: int, seed: int) -> nn.Module:
    """A new head to logits ``(n, n_classes)``, the same for every arm under one seed.

    It reads features ``(n, feature_dim)``, or tokens ``(n, tokens, feature_dim)`` where ``cfg.reads_tokens``. The
    weights of the last layer start small and its biases at zero; a head that is solved knows nothing before that.

    Raises:
        ConfigError: The attention heads do not divide ``feature_dim``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed reaches for devices that are not used: 2 ms
        match cfg:
            case Linear():
                return LinearHead(feature_dim, n_classes, cfg.dropout)
            case MLP():
                return MLPHead(feature_dim, n_classes, cfg)
            case Cosine():
                return CosineHead(feature_dim, n_classes, cfg)
            case AttentionPool():
                return AttentionPoolHead(feature_dim, n_classes, cfg)
            case Ridge() | Logistic():
                head = LinearHead(feature_dim, n_classes, dropout=0.0)
                nn.init.zeros_(head.weight)
                return head
            case KNN():
                return KNNHead(feature_dim, n_classes, cfg.temperature)
