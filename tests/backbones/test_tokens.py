"""Tokens before pooling, over the families of timm, against what timm makes of them itself."""

from __future__ import annotations

import pytest
import timm
import torch

from tests.backbones.test_timm_backbone import config
from tl_experiments.backbones.layout import layout_of
from tl_experiments.backbones.timm_backbone import build_backbone
from tl_experiments.backbones.tokens import as_tokens, token_format
from tl_experiments.config.heads import AttentionPool
from tl_experiments.errors import ConfigError
from tl_experiments.heads import build_head

# name -> tokens of an image at the size of its pretraining: positions, and class or register tokens
TOKENS = {
    "test_resnet": 25, "test_convnext": 25, "test_efficientnet": 25, "test_nfnet": 25, "test_byobnet": 25,
    "test_mambaout": 25, "test_vit": 1 + 100, "test_vit3": 1 + 100, "test_vit4": 1 + 100, "mobilenetv3_small_050": 49,
    "swin_tiny_patch4_window7_224": 49, "swinv2_cr_tiny_224": 49, "coatnet_nano_rw_224": 49, "levit_128s": 16,
    "mixer_s32_224": 49, "xcit_nano_12_p16_224": 1 + 196, "densenet121": 49, "regnetx_002": 49, "cait_xxs24_224": 197,
    "efficientformerv2_s0": 49, "tiny_vit_5m_224": 49, "hiera_tiny_224": 49, "sequencer2d_s": 256,
    "vit_medium_patch16_reg4_gap_256": 4 + 256, "mvitv2_tiny": 49, "davit_tiny": 49,
}  # fmt: skip


@pytest.mark.parametrize(("name", "n_tokens"), TOKENS.items())
def test_every_family_gives_tokens(name, n_tokens):
    backbone = build_backbone(config(name), seed=0, tokens=True)
    size = backbone.input_spec.image_size
    tokens = backbone(torch.randn(2, 3, size, size))
    assert tokens.shape == (2, n_tokens, backbone.feature_dim)
    assert backbone.n_tokens == n_tokens
    tokens.square().sum().backward()
    assert not [name for name, parameter in backbone.net.named_parameters() if parameter.grad is None]
    layout = layout_of(backbone, build_head(AttentionPool(num_heads=1), backbone.feature_dim, 3, seed=0))
    assert layout.names() >= {f"backbone.net.{name}" for name, _ in backbone.net.named_parameters()}


@pytest.mark.parametrize(
    "name",
    ["test_resnet", "test_efficientnet", "mobilenetv3_small_050", "swin_tiny_patch4_window7_224", "mixer_s32_224"],
)
def test_the_mean_token_is_what_timm_pools(name):
    """For nets that pool by the mean as their last operation; another layout of the tokens would mix them up."""
    tokens, pooled = (build_backbone(config(name), seed=0, tokens=tokens).eval() for tokens in (True, False))
    size = tokens.input_spec.image_size
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if name == "mobilenetv3_small_050":  # a layer stands behind its pooling, and is applied to each token here
            assert tokens.feature_dim == 1024
            pixels = tokens.net.forward_features(image)
            expected = torch.stack([pooled.net.forward_head(pixels[:, :, i : i + 1, j : j + 1], pre_logits=True)
                                    for i in range(7) for j in range(7)], 1)  # fmt: skip
            torch.testing.assert_close(tokens(image), expected, rtol=1e-3, atol=1e-4)
        else:
            torch.testing.assert_close(tokens(image).mean(1), pooled(image), rtol=1e-3, atol=1e-4)


def test_a_class_token_is_one_of_them():
    tokens, pooled = (build_backbone(config("test_vit"), seed=0, tokens=tokens).eval() for tokens in (True, False))
    image = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(tokens(image)[:, 0], pooled(image))


@pytest.mark.parametrize(
    ("shape", "said", "expected"),
    [
        ((1, 7, 7, 9), None, "NHWC"),
        ((1, 9, 7, 7), None, "NCHW"),
        ((1, 9, 9, 9), None, "NCHW"),
        ((1, 9, 9, 9), "NHWC", "NHWC"),
        ((1, 9, 7, 7), "NHWC", "NCHW"),  # timm says what forward_features gives; the head may have turned it
        ((1, 4, 9), None, "NLC"),
    ],
)
def test_the_layout_is_told_by_the_size_of_a_token(shape, said, expected):
    net = torch.nn.Identity()
    if said:
        net.output_fmt = said
    features = torch.arange(torch.Size(shape).numel()).view(shape)
    found = token_format(net, features, 9, "net")
    assert found == expected
    tokens = as_tokens(features, found)
    position = features[0, :, 1, 2] if found == "NCHW" else features[0, 1, 2] if found == "NHWC" else features[0, 1]
    width = shape[3] if found == "NCHW" else shape[2]
    assert torch.equal(tokens[0, width + 2 if found != "NLC" else 1], position)


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "crossvit_tiny_240", "efficientvit_b0"])
def test_a_family_without_tokens_is_named(name):
    with pytest.raises(ConfigError, match=rf"head: attention_pool needs tokens, and {name} gives none \(.*\) -> "):
        build_backbone(config(name), seed=0, tokens=True)


def test_map_pooling_goes_with_its_parameters():
    kept = {name for name, _ in build_backbone(config("test_vit3"), seed=0, tokens=True).net.named_parameters()}
    everything = {name for name, _ in timm.create_model("test_vit3", num_classes=0).named_parameters()}
    assert everything - kept == {name for name in everything if name.startswith("attn_pool.")} != set()
