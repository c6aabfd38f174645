"""A classifier by direction alone: the length of the features, which differs between domains, does not count."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tl_experiments.config.heads import Cosine


class CosineHead(nn.Module):
    """Cosines between features and class weights, over a temperature (Gidaris & Komodakis, 2018, equation 4).

    The temperature is held as its logarithm, so that it stays positive and a step changes it by a share of itself.
    """

    log_temperature: Tensor

    def __init__(self, feature_dim: int, n_classes: int, cfg: Cosine) -> None:
        super().__init__()
        self.dropout = nn.Dropout(cfg.dropout)
        self.weight = nn.Parameter(torch.empty(n_classes, feature_dim))
        nn.init.normal_(self.weight, std=feature_dim**-0.5)  # of length 1: shorter ones would turn faster
        log_temperature = torch.tensor(math.log(cfg.temperature))
        if cfg.learn_temperature:
            self.log_temperature = nn.Parameter(log_temperature)
        else:
            self.register_buffer("log_temperature", log_temperature)

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(n, feature_dim)`` to logits ``(n, n_classes)`` in [-1, 1] / temperature."""
        directions = functional.normalize(self.dropout(features), dim=1)
        cosines = functional.linear(directions, functional.normalize(self.weight, dim=1))
        return cosines * torch.exp(-self.log_temperature)
