"""Linear layers on pooled features."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from tl_experiments.config.heads import MLP

_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


class LinearHead(nn.Linear):
    """A linear layer after dropout, features ``(n, feature_dim)`` to logits ``(n, n_classes)``."""

    def __init__(self, feature_dim: int, n_classes: int, dropout: float) -> None:
        super().__init__(feature_dim, n_classes)
        self.dropout = nn.Dropout(dropout)
        nn.init.trunc_normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(self.dropout(features))


class MLPHead(nn.Sequential):
    """Hidden layers, each with its activation and dropout, then a linear layer; ``(n, feature_dim)`` to logits."""

    def __init__(self, feature_dim: int, n_classes: int, cfg: MLP) -> None:
        layers: list[nn.Module] = []
        for size_in, size_out in itertools.pairwise((feature_dim, *cfg.hidden_sizes)):
            norm = [nn.LayerNorm(size_out)] if cfg.layer_norm else []
            layers += [nn.Linear(size_in, size_out), *norm, _ACTIVATIONS[cfg.activation](), nn.Dropout(cfg.dropout)]
        super().__init__(*layers, LinearHead(cfg.hidden_sizes[-1], n_classes, dropout=0.0))
