"""Pooling that is learnt with the head, for backbones whose pooled features were not made for the task."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tl_experiments.config.heads import AttentionPool
from tl_experiments.errors import ConfigError
from tl_experiments.heads.linear import LinearHead


class AttentionPoolHead(nn.Module):
    """One learnt query attends over all tokens; what it gathers goes through a linear layer.

    Attentive probing (Bardes et al., 2024; El-Nouby et al., 2024), which is class attention (Touvron et al., 2021)
    without its residual branches. The query is learnt as it is, without a projection; the keys have no bias, since
    softmax would cancel it; the linear layer takes the place of the output projection.

    Raises:
        ConfigError: ``num_heads`` does not divide ``feature_dim``.
    """

    def __init__(self, feature_dim: int, n_classes: int, cfg: AttentionPool) -> None:
        super().__init__()
        if feature_dim % cfg.num_heads:
            divisors = [str(heads) for heads in range(1, 17) if feature_dim % heads == 0]
            raise ConfigError(
                "head.num_heads",
                f"got {cfg.num_heads}, expected a divisor of the {feature_dim} dimensions of the features",
                f"give one of {', '.join(divisors)}",
            )
        self.num_heads = cfg.num_heads
        self.norm = nn.LayerNorm(feature_dim)
        self.query = nn.Parameter(torch.empty(1, feature_dim))
        self.key = nn.Linear(feature_dim, feature_dim, bias=False)
        self.value = nn.Linear(feature_dim, feature_dim)
        for weight in (self.query, self.key.weight, self.value.weight):
            nn.init.trunc_normal_(weight, std=0.02)
        nn.init.zeros_(self.value.bias)
        self.classifier = LinearHead(feature_dim, n_classes, cfg.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``(n, tokens, feature_dim)`` to logits ``(n, n_classes)``."""
        tokens = self.norm(tokens)
        query = self.query.expand(tokens.shape[0], 1, -1)
        query, key, value = (self._split(part) for part in (query, self.key(tokens), self.value(tokens)))
        pooled = functional.scaled_dot_product_attention(query, key, value)  # (n, heads, 1, feature_dim / heads)
        return self.classifier(pooled.flatten(1))

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
