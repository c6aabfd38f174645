"""A head without parameters, of which the file alone knows how many images it holds."""

from __future__ import annotations

import dataclasses

import torch

from tl_experiments.config.heads import KNN
from tl_experiments.heads import build_head
from tl_experiments.training.build import build
from tl_experiments.training.checkpoint import load_run, write_checkpoint


def test_nearest_neighbours_are_loaded_with_their_images(tiny, tmp_path):
    cfg, parts = tiny(), build(tiny())
    model = parts.model.eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 3, 32, 32), generator=generator, dtype=torch.uint8)
    head = KNN(neighbours=(3, 5))
    model.head = build_head(head, model.backbone.feature_dim, len(parts.data.spec.classes), seed=0)
    features = torch.randn(20, model.backbone.feature_dim, generator=generator)
    model.head.fill(features, torch.arange(20) % 10, 5)
    write_checkpoint(tmp_path, dataclasses.replace(cfg, head=head), "an-id", parts, parts.model.state_dict())
    loaded = load_run(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
    assert loaded.head.features.shape == features.shape
