"""Weights: every tensor accounted for, a poor match refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from tl_experiments.backbones.locate import locate, weights_digest
from tl_experiments.backbones.timm_backbone import build_backbone
from tl_experiments.config.backbones import BackboneConfig, Preprocessing
from tl_experiments.errors import WeightsError

AS_PRETRAINED = Preprocessing(image_size=None, mean=None, std=None, interpolation=None, crop_fraction=None)


def build(weights, name="test_resnet"):
    return build_backbone(
        BackboneConfig(name=name, weights=str(weights), kwargs={}, preprocessing=AS_PRETRAINED), seed=1
    )


@pytest.fixture
def state():
    torch.manual_seed(7)
    return {name: t.clone() for name, t in timm.create_model("test_resnet", num_classes=5).state_dict().items()}


@pytest.mark.parametrize("form", ["safetensors", "pth", "nested", "ddp", "half"])
def test_every_common_form_loads(form, state, tmp_path):
    path = tmp_path / ("w.safetensors" if form in ("safetensors", "half") else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "half":
        save_file({name: t.half() if t.is_floating_point() else t for name, t in state.items()}, path)
    else:
        named = {f"module.{name}": t for name, t in state.items()} if form == "ddp" else state
        torch.save({"state_dict": named} if form == "nested" else named, path)
    backbone = build(path)
    loaded = backbone.net.state_dict()
    for name, tensor in loaded.items():
        assert torch.equal(
            tensor, state[name].half().float() if form == "half" and tensor.is_floating_point() else state[name]
        )
    assert backbone.report.matched == len(loaded)
    assert backbone.report.classifier_dropped == 2
    assert backbone.report.sha256 == weights_digest(str(path))


@pytest.mark.parametrize(
    ("damage", "counts"),
    [
        (lambda s: s.pop("conv1.0.weight"), "1 tensors missing, 0 unexpected, 0 of another shape, e.g. conv1.0.weight"),
        (lambda s: s.update(extra=torch.ones(1)), "0 tensors missing, 1 unexpected, 0 of another shape, e.g. extra"),
        (lambda s: s.update({"conv1.0.weight": torch.ones(1)}), "0 tensors missing, 0 unexpected, 1 of another shape"),
    ],
)
def test_a_poor_match_is_refused(damage, counts, state, tmp_path):
    damage(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=counts):
        build(tmp_path / "w.safetensors")


def test_a_payload_is_not_run(tmp_path):
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self):
            return (Path.touch, (canary,))

    (tmp_path / "w.pth").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(WeightsError, match=r"cannot be read"):
        build(tmp_path / "w.pth")
    assert not canary.exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "none.pth", "no file .*none.pth"),
        (lambda p: p, "0 checkpoints in .*, expected one"),
        (lambda p: (p / "w.txt").write_text("x") and p / "w.txt", "of no known kind -> expected .safetensors"),
    ],
)
def test_paths_that_cannot_be(make, message, tmp_path):
    with pytest.raises(WeightsError, match=message):
        locate(str(make(tmp_path)))


def test_a_truncated_file_is_named(state, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"w.safetensors: cannot be read"):
        build(path)


def test_a_checkpoint_of_another_backbone(state, tmp_path):
    save_file({f"backbone.net.{name}": tensor for name, tensor in state.items()}, tmp_path / "checkpoint.safetensors")
    digest = weights_digest(str(tmp_path))
    (tmp_path / "checkpoint.json").write_text(json.dumps({"backbone": "test_resnet", "sha256": digest}))
    with pytest.raises(WeightsError, match=r"holds test_resnet, the backbone is test_vit -> backbone.name=test_resnet"):
        build(tmp_path, name="test_vit")


def test_one_flipped_bit_in_an_own_checkpoint_is_found(state, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    save_file({f"backbone.net.{name}": tensor for name, tensor in state.items()}, path)
    digest = weights_digest(str(path))
    (tmp_path / "checkpoint.json").write_text(json.dumps({"backbone": "test_resnet", "sha256": digest}))
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"not the file that checkpoint.json describes \(sha256\) -> it is damaged"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, r"cannot be read \(EOFError\)"), (torch.ones(3), "it holds a Tensor, expected a state_dict")],
)
def test_files_that_are_no_state_dict(content, reason, tmp_path):
    path = tmp_path / "w.pth"
    path.touch() if content is None else torch.save(content, path)
    with pytest.raises(WeightsError, match=reason):
        build(path)


def test_the_digest_follows_the_content(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(b"a")
    first = weights_digest(str(path))
    path.write_bytes(b"bb")
    assert weights_digest(str(path)) != first
    assert weights_digest("random") == "random"


@pytest.mark.parametrize(("name", "classes"), [("in1k", 1001), ("inat_bird", 965)])
def test_real_weights_load_and_classify(name, classes, shared_data):
    path = shared_data / "weights" / f"tf_mobilenetv2_100_{name}.safetensors"
    cfg = BackboneConfig(
        name="mobilenetv2_100",
        weights=str(path),
        kwargs={"pad_type": "same", "bn_eps": 1e-3},
        preprocessing=AS_PRETRAINED,
    )
    backbone = build_backbone(cfg, seed=0).eval()
    reference = timm.create_model("mobilenetv2_100", num_classes=classes, pad_type="same", bn_eps=1e-3).eval()
    from safetensors.torch import load_file

    reference.load_state_dict(load_file(path), strict=True)
    image = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(backbone(image), reference.forward_head(reference.forward_features(image), pre_logits=True))
    assert backbone.report.classifier_dropped == 2
