"""Each head in whole runs: frozen and trained parts, checkpoints, labels."""

from __future__ import annotations

import time

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import TINY
from tl_experiments.config import compose
from tl_experiments.training.build import build
from tl_experiments.training.fit import fit
from tl_experiments.training.history import History
from tl_experiments.training.identity import arm, job_id
from tl_experiments.training.run import run

HEADS = ["linear", "mlp", "cosine", "attention_pool"]
NETS = [
    ("test_vit", 160),  # class token
    ("test_vit2", 160),  # the mean of the tokens, a norm behind it
    ("test_vit3", 160),  # map pooling
    ("test_resnet", 64),
    ("swin_tiny_patch4_window7_224", 64),  # channels last
    ("mobilenetv3_small_050", 64),  # a layer behind the pooling
    ("test_convnext", 64),
]


def assert_moved(cfg, folder):
    """Train; parameters that moved are exactly those that the plan names. The audit in the fit says the same."""
    parts = build(cfg)
    before = {name: tensor.clone() for name, tensor in parts.model.state_dict().items()}
    fit(cfg, parts, History(folder, parts.data.steps_per_epoch, time.perf_counter()), "cpu", "32-true")
    after = parts.model.state_dict()
    trained = {name for phase in parts.phases for name in phase.phase.lr_multiplier}
    parameters = {name for name, _ in parts.model.named_parameters()}
    assert {name for name in parameters if not torch.equal(before[name], after[name])} == trained
    assert {name for name in parameters if name.startswith("head.")} <= trained


@pytest.mark.parametrize("strategy", ["feature_extraction", "last_n_blocks", "full"])
@pytest.mark.parametrize("head", HEADS)
def test_what_trains_with_each_head(tiny, tmp_path, head, strategy):
    options = ["head.layer_norm=true"] if head == "mlp" else []
    size = "backbone.preprocessing.image_size=64"
    cfg = tiny(f"head={head}", f"freeze_strategy={strategy}", *options, "head.dropout=0.2", size, "scheduler=constant")
    assert_moved(cfg, tmp_path)


@pytest.mark.parametrize("head", HEADS)
def test_a_run_leaves_a_checkpoint_that_its_model_loads(tiny, tmp_path, head):
    cfg = tiny(f"head={head}", "freeze_strategy=full", "backbone.preprocessing.image_size=64")
    record = run(cfg, tmp_path)
    model = build(cfg).model
    state = load_file(tmp_path / "checkpoint.safetensors")
    model.load_state_dict(state)  # strict
    assert record.trained_parameters == sum(parameter.numel() for parameter in model.parameters())
    own = compose([*TINY, f"backbone.weights={tmp_path}", "head=cosine", f"output_dir={tmp_path}"])
    assert torch.equal(build(own).model.backbone.net.conv1[0].weight, state["backbone.net.conv1.0.weight"])


@pytest.mark.parametrize(("net", "size"), NETS)
def test_full_fine_tuning_below_attention_pooling(tiny, tmp_path, net, size):
    cfg = tiny(
        "backbone=timm",
        f"backbone.name={net}",
        "backbone.weights=random",
        f"backbone.preprocessing.image_size={size}",
        "head=attention_pool",
        "freeze_strategy=full",
        "scheduler=constant",
        "trainer.max_epochs=1",
    )
    assert_moved(cfg, tmp_path)


def test_a_single_token_is_said(tiny, tmp_path):
    assert "single token at 32 px" in " ".join(build(tiny("head=attention_pool")).notes)
    assert not build(tiny("head=attention_pool", "backbone.preprocessing.image_size=64")).notes
    run(tiny("head=attention_pool"), tmp_path)  # and is no reason to fail


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        (["head=linear"], "linear"),
        (["head=linear", "head.dropout=0.5"], "linear(dropout=0.5)"),
        (["head=mlp"], "mlp"),
        (["head=mlp", "head.hidden_sizes=[64,32]", "head.dropout=0.1"], "mlp(dropout=0.1, hidden_sizes=64+32)"),
        (["head=cosine", "head.learn_temperature=false"], "cosine(learn_temperature=False)"),
        (["head=attention_pool", "head.num_heads=4"], "attention_pool(num_heads=4)"),
    ],
)
def test_a_head_is_labelled_with_its_options(tiny, overrides, label):
    cfg = tiny(*overrides)
    assert arm(cfg)["head"] == label
    assert (job_id(cfg) == job_id(tiny("head=linear"))) == (label == "linear")


@pytest.mark.parametrize("head", HEADS)
def test_two_arms_start_from_the_same_head(tiny, head):
    probe, full = (build(tiny(f"head={head}", f"freeze_strategy={name}")) for name in ("feature_extraction", "full"))
    state = full.model.head.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in probe.model.head.state_dict().items())
