"""Images of other sizes and channels than a backbone was made for, against timm itself."""

from __future__ import annotations

import dataclasses

import pytest
import timm
import torch
from timm.models import adapt_input_conv

from tests.backbones.test_timm_backbone import AS_PRETRAINED, config
from tl_experiments.backbones.timm_backbone import build_backbone
from tl_experiments.config.backbones import BackboneConfig
from tl_experiments.errors import ConfigError, UserError, WeightsError

IMAGENET_MEAN, IMAGENET_STD = (0.485 + 0.456 + 0.406) / 3, (0.229 + 0.224 + 0.225) / 3


def at(name: str, size: int, **kwargs: object) -> BackboneConfig:
    return dataclasses.replace(
        config(name, **kwargs), preprocessing=dataclasses.replace(AS_PRETRAINED, image_size=size)
    )


@pytest.mark.parametrize("name", [
    "resnet10t", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "levit_128s",
    "mixer_s32_224", "coatnet_nano_rw_224", "maxvit_nano_rw_256", "convnext_tiny", "mobilenetv3_small_050",
])  # fmt: skip
@pytest.mark.parametrize("size", [64, 96, 128])
def test_sizes_that_work(name, size):
    backbone = build_backbone(at(name, size), seed=0)
    assert backbone.training
    assert backbone(torch.zeros(2, 3, size, size)).shape == (2, backbone.feature_dim)


@pytest.mark.parametrize(
    ("name", "size", "works"),
    [
        ("vit_tiny_patch16_224", 100, 96),
        ("vit_small_patch14_dinov2", 64, 70),  # timm alone takes it and cuts 8 pixels off
        ("vit_small_patch14_dinov2", 128, 126),
        ("test_vit", 100, 96),
        ("mixer_s32_224", 100, 96),
        ("levit_128s", 100, 96),
        ("coatnet_nano_rw_224", 100, 96),
        ("maxvit_tiny_tf_224", 100, 96),
        ("nest_tiny", 100, 96),
        ("xcit_nano_12_p16_224", 100, 96),
        ("inception_v3", 64, 80),
        ("efficientformer_l1", 64, 224),  # cannot be built for another
        ("crossvit_tiny_240", 96, 240),
    ],
)
def test_a_size_that_does_not_work_is_answered_with_one_that_does(name, size, works):
    before = torch.get_rng_state()
    with pytest.raises(ConfigError) as caught:
        build_backbone(at(name, size), seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    message = str(caught.value)
    assert message.startswith(f"backbone.preprocessing.image_size: {name} does not take images of {size} px (")
    assert message.endswith(f" -> backbone.preprocessing.image_size={works} works")
    backbone = build_backbone(at(name, works), seed=0)
    assert backbone(torch.zeros(2, 3, works, works)).shape == (2, backbone.feature_dim)


def test_a_size_by_kwargs_that_the_images_do_not_have():
    with pytest.raises(ConfigError, match=r"does not take images of 64 px \(Input height \(64\) doesn't match model"):
        build_backbone(at("vit_tiny_patch16_224", 64, img_size=96), seed=0)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "mobilenetv3_small_050", "densenet121"])
@pytest.mark.parametrize("channels", [1, 4, 13])
def test_the_backbone_follows_the_channels(name, channels):
    backbone = build_backbone(config(name), 0, channels).eval()
    torch.manual_seed(0)
    reference = timm.create_model(name, num_classes=0, in_chans=channels).eval()
    size = backbone.input_spec.image_size
    image = torch.randn(2, channels, size, size)
    assert torch.equal(backbone(image), reference(image))
    spec = backbone.input_spec
    assert spec.channels == channels == len(spec.std)
    if name == "densenet121":
        assert spec.mean == pytest.approx([IMAGENET_MEAN] * channels)
        assert spec.std == pytest.approx([IMAGENET_STD] * channels)


def test_channels_among_the_kwargs():
    with pytest.raises(ConfigError, match=r"backbone.kwargs.in_chans: got 1, the images have 3 channels -> leave it"):
        build_backbone(config("test_resnet", in_chans=1), seed=0)


@pytest.fixture
def pretrained(tmp_path):
    """Weights that timm takes for its own, without a network."""

    def make(name: str, size: int | None = None) -> BackboneConfig:
        torch.manual_seed(5)
        torch.save(timm.create_model(name).state_dict(), tmp_path / "weights.pth")
        overlay = {"file": str(tmp_path / "weights.pth")}
        cfg = dataclasses.replace(config(name, pretrained_cfg_overlay=overlay), weights="pretrained")
        return dataclasses.replace(cfg, preprocessing=dataclasses.replace(AS_PRETRAINED, image_size=size))

    return make


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_pretrained_colours_are_adapted_by_timm(pretrained, channels):
    cfg = pretrained("test_resnet")
    ours, theirs = build_backbone(cfg, 0, channels), build_backbone(cfg, 0)
    colours, adapted = (net.net.conv1[0].weight for net in (theirs, ours))
    assert adapted.shape[1] == channels
    assert torch.equal(adapted, adapt_input_conv(channels, colours.detach()))
    if channels == 1:  # grey gives what it gave as three equal colours
        torch.testing.assert_close(adapted.sum(1), colours.sum(1))
    assert ours.report.image_size == 160
    assert ours.report.adapted == {"conv1.0.weight": f"3 to {channels}"}


def test_pretrained_weights_of_another_size_that_cannot_be_stretched(pretrained):
    with pytest.raises(
        UserError,
        match=r"does not fit: 0 tensors missing, 0 unexpected, 5 of another shape.*image_size=224",
    ) as caught:
        build_backbone(pretrained("efficientformerv2_s0", 64), 0)
    assert isinstance(caught.value, WeightsError)
