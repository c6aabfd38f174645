"""``backbone.weights=pretrained``, against timm's own loading from the same cache; no network."""

from __future__ import annotations

import hashlib
import http.server
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import timm
import torch

from tests.backbones.conftest import COMMIT
from tests.backbones.test_timm_backbone import config
from tl_experiments.backbones.timm_backbone import build_backbone
from tl_experiments.errors import WeightsError

# Filters of many kinds: none, names mapped, embeddings resized, two classifiers, attention biases
FAMILIES = [
    "test_resnet", "test_vit", "test_vit3", "test_convnext", "test_efficientnet", "test_byobnet", "regnetx_002",
    "mobilenetv3_small_050", "deit_tiny_distilled_patch16_224", "vit_tiny_patch16_224", "levit_128s",
]  # fmt: skip


def equal(first, second):
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("name", FAMILIES)
def test_pretrained_is_timms_own(name, publish):
    published = publish(name)
    backbone = build_backbone(config(name, weights="pretrained"), seed=5)
    assert equal(backbone.net, timm.create_model(name, pretrained=True, num_classes=0))
    report = backbone.report
    assert report.matched == report.total == len(backbone.net.state_dict())
    assert report.in_file == len(published.state_dict())
    assert report.classifier_dropped == report.in_file - report.matched - report.unexpected.count > 0
    assert (report.missing.count, report.shape_mismatched.count, report.resized, report.adapted) == (0, 0, {}, {})


SIZED = ["test_vit", "swin_tiny_patch4_window7_224"]  # built for one size
CASES = [
    *((name, {"in_chans": channels}) for name in (*SIZED, "test_resnet", "test_convnext") for channels in (1, 4)),
    *((name, {"img_size": 96}) for name in SIZED),
    *((name, {"img_size": 96, "in_chans": 1}) for name in SIZED),
]


@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_other_sizes_and_channels_are_adapted_as_timm_does(name, kwargs, publish):
    publish(name)
    own = {key: value for key, value in kwargs.items() if key != "in_chans"}
    backbone = build_backbone(config(name, weights="pretrained", **own), seed=5, channels=kwargs.get("in_chans", 3))
    assert equal(backbone.net, timm.create_model(name, pretrained=True, num_classes=0, **kwargs))
    assert set(backbone.report.adapted.values()) == ({f"3 to {kwargs['in_chans']}"} if "in_chans" in kwargs else set())
    assert len(backbone.report.adaptations()) == len(kwargs)


def test_what_was_resized_and_adapted_is_said(publish):
    publish("vit_tiny_patch16_224")
    report = build_backbone(config("vit_tiny_patch16_224", "pretrained", img_size=128), seed=0, channels=1).report
    assert report.resized == {"pos_embed": "14x14 to 8x8"}
    assert report.adaptations() == (
        "The weights were resized to this input: pos_embed from 14x14 to 8x8.",
        "The first convolution was adapted from 3 to 1 channels (patch_embed.proj.weight).",
    )


def test_a_norm_that_timm_adds_behind_masked_autoencoders_is_listed(publish):
    name = "convnextv2_atto.fcmae"
    publish(name, without="head.")
    backbone = build_backbone(config(name, weights="pretrained"), seed=5)
    assert equal(backbone.net, timm.create_model(name, pretrained=True, num_classes=0))
    assert backbone.report.missing.first == ("head.norm.weight", "head.norm.bias")
    assert backbone.report.adaptations() == (
        "The weights have no head.norm.weight and head.norm.bias: timm adds a norm that starts at 1 and 0.",
    )


def test_the_same_norm_missing_elsewhere_is_refused(publish):
    publish("convnext_atto", without="head.norm.")
    with pytest.raises(WeightsError, match=r"does not fit: \d+ tensors missing"):
        build_backbone(config("convnext_atto", weights="pretrained"), seed=5)


def test_repository_commit_and_hash_are_recorded(publish, hub_cache):
    publish("test_resnet")
    report = build_backbone(config("test_resnet", weights="pretrained"), seed=0).report
    (file,) = hub_cache.glob(f"*/snapshots/{COMMIT}/model.safetensors")
    assert (report.repo, report.commit) == ("timm/test_resnet.r160_in1k", COMMIT)
    assert report.source == "timm/test_resnet.r160_in1k/model.safetensors"
    assert report.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_repository_of_the_hub_by_its_own_name(publish):
    publish("test_resnet")
    name = "hf-hub:timm/test_resnet.r160_in1k"
    backbone = build_backbone(config(name, weights="pretrained"), seed=5)
    assert equal(backbone.net, timm.create_model(name, pretrained=True, num_classes=0))
    assert backbone.report.commit == COMMIT


def test_weights_behind_an_address_are_taken_from_timms_cache(tmp_path):
    """19 of timm's models have no repository on the hub."""
    torch.manual_seed(3)
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    kwargs = {
        "cache_dir": str(tmp_path),
        "pretrained_cfg_overlay": {"hf_hub_id": None, "url": "https://host.invalid/w.pth"},
    }
    backbone = build_backbone(config("test_resnet", weights="pretrained", **kwargs), seed=5)
    assert equal(backbone.net, timm.create_model("test_resnet", pretrained=True, num_classes=0, **kwargs))
    (tmp_path / "w.pth").unlink()
    with pytest.raises(WeightsError, match=r"w.pth from https://host.invalid/w.pth is not on this disk .*curl -LO"):
        build_backbone(config("test_resnet", weights="pretrained", **kwargs), seed=5)


def test_another_familys_file_under_the_name_is_refused(publish, hub_cache):
    publish("test_resnet")
    (hub_cache / "models--timm--test_resnet.r160_in1k").rename(hub_cache / "models--timm--test_vit.r160_in1k")
    with pytest.raises(WeightsError, match=r"test_vit.r160_in1k/model.safetensors does not fit: \d+ tensors missing"):
        build_backbone(config("test_vit", weights="pretrained"), seed=0)


def write_npz(path, net):
    """Random weights for a ViT as its first authors stored them: JAX names and axes."""
    rng = np.random.default_rng(0)
    dim, heads, blocks = net.embed_dim, net.blocks[0].attn.num_heads, len(net.blocks)
    hidden, tokens, patch = net.blocks[0].mlp.fc1.out_features, net.pos_embed.shape[1], net.patch_embed.patch_size
    shapes = {"embedding/kernel": (*patch, 3, dim), "embedding/bias": (dim,), "cls": (1, 1, dim)}
    shapes |= {"Transformer/posembed_input/pos_embedding": (1, tokens, dim)}
    norms, split = ["Transformer/encoder_norm"], (heads, dim // heads)
    for i in range(blocks):
        block = f"Transformer/encoderblock_{i}"
        norms += [f"{block}/LayerNorm_0", f"{block}/LayerNorm_2"]
        attention, mlp = f"{block}/MultiHeadDotProductAttention_1", f"{block}/MlpBlock_3"
        for part in ("query", "key", "value"):
            shapes |= {f"{attention}/{part}/kernel": (dim, *split), f"{attention}/{part}/bias": split}
        shapes |= {f"{attention}/out/kernel": (*split, dim), f"{attention}/out/bias": (dim,)}
        shapes |= {f"{mlp}/Dense_0/kernel": (dim, hidden), f"{mlp}/Dense_0/bias": (hidden,)}
        shapes |= {f"{mlp}/Dense_1/kernel": (hidden, dim), f"{mlp}/Dense_1/bias": (dim,)}
    shapes |= {f"{norm}/{part}": (dim,) for norm in norms for part in ("scale", "bias")}
    np.savez(path, **{name: rng.normal(size=shape).astype("float32") for name, shape in shapes.items()})


def test_weights_of_another_framework_are_read_by_timms_loader_and_it_is_said(tmp_path):
    write_npz(tmp_path / "w.npz", timm.create_model("vit_tiny_patch16_224"))
    kwargs = {"pretrained_cfg_overlay": {"file": str(tmp_path / "w.npz"), "custom_load": True}}
    backbone = build_backbone(config("vit_tiny_patch16_224", "pretrained", **kwargs), seed=0)
    assert equal(backbone.net, timm.create_model("vit_tiny_patch16_224", pretrained=True, num_classes=0, **kwargs))
    assert backbone.report.own_loader
    assert (backbone.report.matched, backbone.report.missing.count) == (len(backbone.net.state_dict()), 0)
    assert "with a loader of its own" in backbone.report.adaptations()[0]


def test_a_damaged_file_of_another_framework(tmp_path):
    overlay = {"file": str(tmp_path / "w.npz"), "custom_load": True}
    (tmp_path / "w.npz").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"w.npz: timm's loader for it fails"):
        build_backbone(config("test_vit", "pretrained", pretrained_cfg_overlay=overlay), seed=0)


def test_a_model_that_has_no_pretrained_weights():
    with pytest.raises(WeightsError, match=r"timm has no pretrained weights for test_mambaout"):
        build_backbone(config("test_mambaout", weights="pretrained"), seed=0)


def test_offline_and_not_in_the_cache(hub_cache):
    with pytest.raises(
        WeightsError,
        match=r"model.safetensors of timm/test_resnet.r160_in1k is not on this disk and cannot be fetched "
        r"\(HF_HUB_OFFLINE is set\) -> .*hf download timm/test_resnet.r160_in1k model.safetensors",
    ):
        build_backbone(config("test_resnet", weights="pretrained"), seed=0)


FETCH = """
import time
from tl_experiments.backbones.hub import fetch_from_hub
from tl_experiments.errors import WeightsError
started = time.monotonic()
try:
    print(fetch_from_hub("timm/test_resnet.r160_in1k", ("model.safetensors",), None, None))
except WeightsError as error:
    print(error)
print(time.monotonic() - started)
"""


def fetch_with(endpoint, cache):
    """What a process says that asks the hub at ``endpoint``, and its seconds."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(cache)}
    done = subprocess.run([sys.executable, "-c", FETCH], capture_output=True, text=True, env=environment, check=True)
    said, seconds = done.stdout.strip().splitlines()
    return said, float(seconds)


@pytest.fixture
def server():
    """Address and handler class of a server; the test says how it answers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", Handler
    running.shutdown()


def test_a_hub_that_never_answers_is_given_up_within_ten_seconds(server, tmp_path):
    address, handler = server
    handler.do_HEAD = lambda _self: time.sleep(30)
    said, seconds = fetch_with(address, tmp_path)
    assert "model.safetensors of timm/test_resnet.r160_in1k is not on this disk and cannot be fetched" in said
    assert seconds < 10


def test_a_hub_that_cannot_be_reached_is_given_up_at_once(tmp_path):
    said, seconds = fetch_with("http://127.0.0.1:9", tmp_path)
    assert "model.safetensors of timm/test_resnet.r160_in1k is not on this disk and cannot be fetched" in said
    assert seconds < 3


def test_what_is_not_in_the_cache_is_fetched(server, publish, hub_cache, tmp_path):
    publish("test_resnet")
    (file,) = hub_cache.glob("*/snapshots/*/model.safetensors")
    content = file.read_bytes()
    address, handler = server

    def head(self):
        self.send_response(200)
        for key, value in (("ETag", '"1"'), ("X-Repo-Commit", COMMIT), ("Content-Length", str(len(content)))):
            self.send_header(key, value)
        self.end_headers()

    def get(self):
        head(self)
        self.wfile.write(content)

    handler.do_HEAD, handler.do_GET = head, get
    said, _ = fetch_with(address, tmp_path / "other")
    assert said == str(tmp_path / "other" / file.relative_to(hub_cache))
    assert (tmp_path / "other" / file.relative_to(hub_cache)).read_bytes() == content
