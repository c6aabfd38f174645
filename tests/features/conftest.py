"""Models of random weights, small enough to be cut in well under a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tl_experiments.backbones.layout import layout_of
from tl_experiments.backbones.timm_backbone import build_backbone
from tl_experiments.config.backbones import BackboneConfig, Preprocessing
from tl_experiments.config.heads import Head, Linear
from tl_experiments.heads import build_head
from tl_experiments.training.model import TransferModel


def build_model(name: str, size: int | None = None, head: Head | None = None, **kwargs: Any) -> TransferModel:
    """A timm model under a head of three classes; its weights leave their start, where some branches give zeros."""
    head = head or Linear(dropout=0.1)
    spec = Preprocessing(image_size=size, mean=None, std=None, interpolation=None, crop_fraction=None)
    cfg = BackboneConfig(name=name, weights="random", kwargs=kwargs, preprocessing=spec)
    backbone = build_backbone(cfg, seed=0, tokens=head.reads_tokens)
    new = build_head(head, backbone.feature_dim, 3, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return TransferModel(backbone, new, layout_of(backbone, new))


@pytest.fixture
def model_of() -> Callable[..., TransferModel]:
    return build_model
