"""Features, layouts and preprocessing, against timm itself."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_model_data_config

from tl_experiments.backbones.layout import layout_of
from tl_experiments.backbones.timm_backbone import build_backbone
from tl_experiments.config.backbones import BackboneConfig, Preprocessing
from tl_experiments.config.heads import Linear
from tl_experiments.errors import ConfigError
from tl_experiments.heads import build_head

AS_PRETRAINED = Preprocessing(image_size=None, mean=None, std=None, interpolation=None, crop_fraction=None)
FAMILIES = [
    "test_resnet", "test_vit", "test_vit3", "test_convnext", "test_efficientnet", "test_nfnet", "test_byobnet",
    "test_mambaout", "resnet18", "mobilenetv3_small_050", "regnetx_002", "tf_efficientnetv2_b0",
]  # fmt: skip


def config(name: str, weights: str = "random", **kwargs: Any) -> BackboneConfig:
    return BackboneConfig(name=name, weights=weights, kwargs=kwargs, preprocessing=AS_PRETRAINED)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_timms_own(name):
    backbone = build_backbone(config(name), seed=0).eval()
    reference = timm.create_model(name, num_classes=7).eval()  # with a classifier, as timm users have it
    shared = {key: value for key, value in backbone.net.state_dict().items() if key in reference.state_dict()}
    reference.load_state_dict(shared, strict=False)
    size = backbone.input_spec.image_size
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = backbone(image)
        expected = reference.forward_head(reference.forward_features(image), pre_logits=True)
    assert features.shape == (2, backbone.feature_dim)
    assert torch.equal(features, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_layout_covers_every_parameter_once_and_in_depth_order(name):
    backbone = build_backbone(config(name), seed=0)
    head = build_head(Linear(name="linear"), backbone.feature_dim, 3, seed=0)
    layout = layout_of(backbone, head)
    listed = [parameter for block in layout.blocks for parameter in block.parameters]
    assert len(listed) == len(set(listed))
    assert set(listed) == {f"backbone.net.{name}" for name, _ in backbone.net.named_parameters()}
    assert sum(block.size for block in layout.blocks) == sum(p.numel() for p in backbone.net.parameters())
    assert len({block.name for block in layout.blocks}) == len(layout.blocks) >= 5
    assert set(layout.head.parameters) == {"head.weight", "head.bias"}


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "densenet121", "resnet18"])
def test_the_last_block_is_worth_training(name):
    """timm's last group can be a final norm alone, and last_n_blocks(1) would train a thousand numbers."""
    backbone = build_backbone(config(name), seed=0)
    layout = layout_of(backbone, build_head(Linear(name="linear"), backbone.feature_dim, 3, seed=0))
    assert layout.blocks[-1].size > 0.1 * layout.blocks[-2].size


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("resnet18", ["stem", *(f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1))]),
        ("vit_tiny_patch16_224", ["stem", *(f"blocks.{depth}" for depth in range(12))]),
    ],
)
def test_blocks_are_the_papers(name, blocks):
    backbone = build_backbone(config(name), seed=0)
    layout = layout_of(backbone, build_head(Linear(name="linear"), backbone.feature_dim, 3, seed=0))
    assert [block.name for block in layout.blocks] == blocks


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "mobilenetv2_100"])
def test_preprocessing_comes_from_the_backbone_unless_overridden(name):
    expected = resolve_model_data_config(timm.create_model(name))
    spec = build_backbone(config(name), seed=0).input_spec
    assert (3, spec.image_size, spec.image_size) == expected["input_size"]
    assert (spec.mean, spec.std) == (expected["mean"], expected["std"])
    assert (spec.interpolation, spec.crop_fraction) == (expected["interpolation"], expected["crop_pct"])
    own = Preprocessing(image_size=96, mean=(0.1, 0.2, 0.3), std=(1, 1, 1), interpolation="nearest", crop_fraction=1.0)
    cfg = BackboneConfig(name=name, weights="random", kwargs={}, preprocessing=own)
    backbone = build_backbone(cfg, seed=0).eval()
    assert backbone.input_spec.__dict__ == {**own.__dict__}
    assert backbone(torch.zeros(1, 3, 96, 96)).shape == (1, backbone.feature_dim)  # a ViT is built for that size


def test_a_model_that_is_bound_to_its_size_says_so():
    """timm builds it without a word, and its first forward pass would fail deep inside."""
    own = Preprocessing(image_size=96, mean=None, std=None, interpolation=None, crop_fraction=None)
    cfg = BackboneConfig(name="efficientformer_l1", weights="random", kwargs={}, preprocessing=own)
    with pytest.raises(
        ConfigError, match=r"image_size: efficientformer_l1 does not take images of 96 px .*image_size=224 works"
    ):
        build_backbone(cfg, seed=0)


def test_kwargs_reach_timm():
    assert build_backbone(config("test_vit", drop_rate=0.5), seed=0).net.pos_drop.p == 0  # type: ignore[union-attr]
    assert build_backbone(config("test_vit", pos_drop_rate=0.5), seed=0).net.pos_drop.p == 0.5  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"backbone.kwargs: timm refuses them for test_vit .*no_such"):
        build_backbone(config("test_vit", no_such=1), seed=0)


def test_random_weights_follow_the_seed_and_leave_the_global_stream_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first, again, other = (build_backbone(config("test_resnet"), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    states = [backbone.net.state_dict()["conv1.0.weight"] for backbone in (first, again, other)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
