"""Weights: every tensor accounted for, a poor match refused."""

from __future__ import annotations

import json
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


@pytest.mark.parametrize("forced", [False, True])
def test_a_payload_is_not_run(tmp_path, monkeypatch, forced):
    """Not even where the environment tells torch to unpickle anything."""
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self):
            return (Path.touch, (canary,))

    torch.save({"state_dict": Payload()}, tmp_path / "w.pth")
    if forced:  # the trap is armed: torch's default would run it
        with pytest.warns(UserWarning, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
            torch.load(tmp_path / "w.pth")
        canary.unlink()
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


def own_checkpoint(folder, state, **facts):
    """A run's folder with the backbone ``state``."""
    path = folder / "checkpoint.safetensors"
    save_file({f"backbone.net.{name}": tensor for name, tensor in state.items()}, path)
    known = {"backbone": "test_resnet", "kwargs": {}, "input": {"image_size": 32}, "holds": "all", "base": None}
    (folder / "checkpoint.json").write_text(json.dumps({**known, "sha256": weights_digest(str(path)), **facts}))
    return path


def test_a_checkpoint_of_another_backbone(state, tmp_path):
    own_checkpoint(tmp_path, state)
    with pytest.raises(WeightsError, match=r"holds test_resnet, the backbone is test_vit -> backbone.name=test_resnet"):
        build(tmp_path, name="test_vit")


def test_one_flipped_bit_in_an_own_checkpoint_is_found(state, tmp_path):
    path = own_checkpoint(tmp_path, state)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"not the file that checkpoint.json describes \(sha256\) -> it is damaged"):
        build(tmp_path)


def test_a_checkpoint_that_another_version_described(state, tmp_path):
    path = own_checkpoint(tmp_path, state)
    facts = {"backbone": "test_resnet", "sha256": weights_digest(str(path))}
    path.with_suffix(".json").write_text(json.dumps(facts))
    with pytest.raises(WeightsError, match=r"says nothing of base, holds, input, kwargs -> another version wrote it"):
        build(tmp_path)


def test_a_checkpoint_of_a_net_that_was_built_otherwise(tmp_path):
    """The same tensors under another padding and epsilon would load, and be another net."""
    net = timm.create_model("mobilenetv2_100", num_classes=0)
    own_checkpoint(
        tmp_path, net.state_dict(), backbone="mobilenetv2_100", kwargs={"pad_type": "same", "drop_rate": 0.1}
    )
    with pytest.raises(WeightsError, match=r"backbone.kwargs: pad_type is None, .* was trained with same -> backbone"):
        build(tmp_path, name="mobilenetv2_100")


def test_an_own_vit_continues_at_another_size_and_with_other_channels(tmp_path):
    net = timm.create_model("test_vit", num_classes=0, img_size=64, in_chans=1)
    own_checkpoint(tmp_path, net.state_dict(), backbone="test_vit", kwargs={"img_size": 64, "in_chans": 1})
    kwargs = {"img_size": 96, "in_chans": 3}
    backbone = build_backbone(
        BackboneConfig(name="test_vit", weights=str(tmp_path), kwargs=kwargs, preprocessing=AS_PRETRAINED), seed=1
    )
    overlay = {"state_dict": net.state_dict(), "input_size": (1, 64, 64)}
    reference = timm.create_model("test_vit", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **kwargs)
    assert all(torch.equal(backbone.net.state_dict()[name], t) for name, t in reference.state_dict().items())
    assert backbone.report.resized == {"pos_embed": "4x4 to 6x6"}
    assert backbone.report.adapted == {"patch_embed.proj.weight": "1 to 3"}


def test_a_file_with_old_names_is_mapped_as_timm_does(tmp_path):
    """ConvNeXt as its authors published it: the family's filter knows the names."""
    net = timm.create_model("convnext_atto", num_classes=3)
    torch.nn.init.normal_(net.head.norm.weight)
    old = {}
    for name, tensor in net.state_dict().items():
        name = name.replace("stem.", "downsample_layers.0.").replace("head.fc.", "head.").replace("head.norm.", "norm.")
        name = name.replace(".blocks.", ".").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        for stage in range(4):
            name = name.replace(f"stages.{stage}.downsample", f"downsample_layers.{stage}")
        old[name] = tensor
    torch.save({"model": old}, tmp_path / "w.pth")
    backbone = build(tmp_path / "w.pth", name="convnext_atto")
    expected = net.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in backbone.net.state_dict().items())
    assert (backbone.report.matched, backbone.report.classifier_dropped) == (len(expected) - 2, 2)


def test_counters_may_be_missing_and_are_listed(state, tmp_path):
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    save_file({name: tensor for name, tensor in state.items() if name not in counters}, tmp_path / "w.safetensors")
    report = build(tmp_path / "w.safetensors").report
    assert (report.missing.count, report.missing.first) == (len(counters), tuple(counters[:10]))
    assert report.matched == report.total - len(counters) == report.in_file - 2


def test_an_auxiliary_head_that_timm_leaves_out_is_listed(tmp_path):
    torch.save(timm.create_model("inception_v3.tv_in1k", aux_logits=True).state_dict(), tmp_path / "w.pth")
    report = build(tmp_path / "w.pth", name="inception_v3.tv_in1k").report
    assert report.unexpected.count > 0
    assert all(name.startswith("AuxLogits.") for name in report.unexpected.first)


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
