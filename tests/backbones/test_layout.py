"""Layouts of every timm family, by names, by a counter of calls, and by the depths that the papers state."""

from __future__ import annotations

import itertools
import re
from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import nn

from tl_experiments.backbones.layout import layout_of
from tl_experiments.backbones.norms import norm_parameters
from tl_experiments.backbones.timm_backbone import TimmBackbone, build_backbone
from tl_experiments.config import compose
from tl_experiments.config.backbones import BackboneConfig, Preprocessing
from tl_experiments.config.compose import choices
from tl_experiments.types import ModelLayout

SMALL = re.compile(r"test_|tiny|nano|atto|xx?_?small|xxs|mini|pico|femto|_s$|_s0|small|_0|18|s12")


def smallest(module: str) -> str:
    """A small model of one of timm's files, by its name."""
    names = timm.list_models(module=module)
    return min(names, key=lambda name: (not name.startswith("test_"), not SMALL.search(name), len(name), name))


FAMILIES = [smallest(module) for module in timm.list_modules()]
FAMILIES += ["deit_tiny_distilled_patch16_224", "poolformer_s12", "test_coatnet", "mobilenetv3_large_100"]


@cache
def built(name: str, **kwargs: Any) -> tuple[TimmBackbone, ModelLayout]:
    """On the meta device: shapes and calls without numbers."""
    size = 56 if name.startswith("sequencer") else None  # its LSTMs take seconds, even without numbers
    spec = Preprocessing(image_size=size, mean=None, std=None, interpolation=None, crop_fraction=None)
    cfg = BackboneConfig(name=name, weights="random", kwargs=kwargs, preprocessing=spec)
    with torch.device("meta"):
        backbone = build_backbone(cfg, seed=0).eval()
        return backbone, layout_of(backbone, nn.Linear(backbone.feature_dim, 3))


def bare(layout: ModelLayout) -> list[list[str]]:
    return [[name.removeprefix("backbone.net.") for name in block.parameters] for block in layout.blocks]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_stands_in_exactly_one_block(name):
    backbone, layout = built(name)
    listed = [parameter for block in bare(layout) for parameter in block]
    assert sorted(listed) == sorted(parameter for parameter, _ in backbone.net.named_parameters())
    assert sum(block.size for block in layout.blocks) == sum(p.numel() for p in backbone.net.parameters())
    names = [block.name for block in layout.all_blocks]
    assert len(set(names)) == len(names) >= 5
    assert all(re.fullmatch(r"[A-Za-z0-9_.#]+", block) for block in names)


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_stand_in_the_order_of_their_calls(name):
    """By half of a block's elements: parameters of the model itself, or a norm a stage, lie elsewhere in time."""
    backbone, layout = built(name)
    clock, first = itertools.count(), {}
    handles = [
        module.register_forward_pre_hook(lambda *_, path=path: (first.setdefault(path, next(clock)), None)[1])
        for path, module in backbone.net.named_modules()
        if path
    ]
    size = backbone.input_spec.image_size
    with torch.no_grad():
        features = backbone(torch.zeros(2, 3, size, size, device="meta"))
    for handle in handles:
        handle.remove()
    assert features.shape == (2, backbone.feature_dim)

    times = []
    for block in layout.blocks:
        calls = []
        for parameter, elements in block.parameters.items():
            owner = parameter.removeprefix("backbone.net.").rpartition(".")[0]
            while owner and owner not in first:  # its weight is used without calling it
                owner = owner.rpartition(".")[0]
            if owner:
                calls.append((first[owner], elements))
        seen = 0
        for time, elements in sorted(calls):
            seen += elements
            if 2 * seen >= sum(elements for _, elements in calls):
                times.append(time)
                break
    assert len(times) >= 4
    assert times == sorted(times)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_old_classifier_is_left(name):
    """A classifier for 1,117 classes is what has a side of that length; timm's own account names the same."""
    backbone, _ = built(name)
    left = {parameter for parameter, _ in backbone.net.named_parameters()}
    with torch.device("meta"):
        size = {"img_size": 56} if name.startswith("sequencer") else {}
        with_classifier = timm.create_model(name, num_classes=1117, **size)
    old = {parameter for parameter, tensor in with_classifier.named_parameters() if 1117 in tensor.shape}
    assert not left & old
    classifier = backbone.net.default_cfg["classifier"]
    for module in (classifier,) if isinstance(classifier, str) else classifier:
        assert not {parameter for parameter in left if parameter.startswith(f"{module}.")}
    try:
        found = backbone.net.get_classifier()
    except AttributeError:
        return  # two models of timm ask a removed classifier for its layers
    for module in found if isinstance(found, (tuple, list)) else (found,):
        assert module is None or not list(module.parameters())


@pytest.mark.parametrize(
    ("name", "depths"),
    [
        ("resnet50", (3, 4, 6, 3)),
        ("regnety_016", (2, 6, 17, 2)),
        ("dm_nfnet_f0", (1, 2, 6, 3)),
        ("convnext_tiny", (3, 3, 9, 3)),
        ("densenet121", (6, 12, 24, 16)),
        ("vit_tiny_patch16_224", (12,)),
        ("eva02_tiny_patch14_224", (12,)),
        ("mixer_s16_224", (8,)),
        ("swin_tiny_patch4_window7_224", (2, 2, 6, 2)),
        ("levit_128", (4, 4, 4)),
        ("xcit_nano_12_p8_224", (12, 2)),
        # from the module tree
        ("cait_xxs24_224", (24, 2)),
        ("caformer_s18", (3, 3, 9, 3)),
        ("pit_ti_224", (2, 6, 4)),
        ("maxvit_tiny_tf_224", (2, 2, 5, 2)),
        ("coatnet_0_224", (2, 3, 5, 2)),
        ("pvt_v2_b0", (2, 2, 2, 2)),
        ("mvitv2_tiny", (1, 2, 5, 2)),
        ("efficientformer_l1", (3, 2, 6, 4)),
        ("gcvit_xxtiny", (2, 2, 6, 2)),
        ("davit_tiny", (2, 2, 6, 2)),  # a spatial and a channel layer a unit of the paper
    ],
)
def test_a_block_is_a_residual_block_or_a_layer(name, depths):
    """As many as the paper's table says, and the stem."""
    _, layout = built(name)
    assert len(layout.blocks) == sum(depths) + 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnet18", None),
        ("swin_tiny_patch4_window7_224", None),
        ("caformer_s18", "timm names no blocks for MetaFormer: its blocks are taken from its module tree"),
        ("maxvit_tiny_tf_224", "timm's groups of MaxxVit hold several layers or are out of depth order: "),
        ("cait_xxs24_224", "timm's groups of Cait hold several layers or are out of depth order: "),
    ],
)
def test_blocks_from_the_module_tree_are_noted(name, says):
    _, layout = built(name)
    assert [note for note in layout.notes if says is None or not note.startswith(says)] == []
    assert bool(layout.notes) == (says is not None)


def test_parameters_that_timm_does_not_match_are_not_lost(monkeypatch):
    """timm puts them into its last group, whatever their depth."""
    backbone, layout = built("vit_tiny_patch16_224")
    monkeypatch.setattr(
        backbone.net, "group_matcher", lambda coarse: {"stem": "^patch", "blocks": r"^blocks\.([0-5])$"}
    )
    again = layout_of(backbone, nn.Linear(2, 2))
    assert again.notes[0].startswith("timm's groups of VisionTransformer hold several layers")
    assert [block.parameters.keys() for block in again.blocks] == [block.parameters.keys() for block in layout.blocks]


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("resnet18", r"bn\d|downsample\.1"),
        ("test_efficientnet", r"bn\d"),  # BatchNormAct2d
        ("vit_tiny_patch16_224", "norm"),
        ("convnextv2_atto", r"norm|grn|downsample\.0|stem\.1"),
        ("caformer_s18", "norm"),  # its own subclasses
        ("convnext_zepto_rms", r"norm|downsample\.0|stem\.1"),  # RmsNorm derives from none of torch's
        ("resnetv2_50d_evos", r"norm\d?\."),  # EvoNorm
        ("test_nfnet", "nothing"),
    ],
)
def test_norms_are_found(name, pattern):
    backbone, layout = built(name)
    expected = {parameter for parameter, _ in backbone.net.named_parameters() if re.search(pattern, parameter)}
    found = {parameter.removeprefix("backbone.net.") for block in layout.blocks for parameter in block.norms}
    assert found == expected == norm_parameters(backbone.net)


def test_the_parameters_of_an_activation_inside_a_norm_are_not_the_norms():
    from timm.layers import BatchNormAct2d

    assert norm_parameters(BatchNormAct2d(4, act_layer=nn.PReLU)) == {"weight", "bias"}


@pytest.mark.parametrize("preset", choices("backbone"))
def test_every_preset_has_a_layout(preset):
    cfg = compose([f"backbone={preset}", "backbone.weights=random", *(["backbone.name=resnet18"] * (preset == "timm"))])
    with torch.device("meta"):
        backbone = build_backbone(cfg.backbone, seed=0).eval()
    size = backbone.input_spec.image_size
    assert size <= 224
    assert len(layout_of(backbone, nn.Linear(2, 2)).blocks) >= 5
    assert backbone(torch.zeros(1, 3, size, size, device="meta")).shape == (1, backbone.feature_dim)
