"""A key changes with each ingredient of the activations and with nothing else."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.features.conftest import build_model
from tl_experiments.features import keys
from tl_experiments.features.keys import ActivationFacts, activation_key, state_digest
from tl_experiments.features.split import split
from tl_experiments.strategies.plans import FeatureExtraction, LastNBlocks

FACTS = ActivationFacts(
    backbone="test_resnet",
    kwargs={"drop_rate": 0.0},
    transform="squash 32 bilinear, version 1",
    precision="32-true float32",
    data="0123",
    device="cpu",
)


def key_of(n=1, facts=FACTS, change=None):
    """The key of a small net of which ``n`` blocks train; ``change`` acts on it before the cut."""
    model = build_model("test_resnet", 32)
    strategy = LastNBlocks(n=n, base_lr={"adamw": 1e-3}) if n else FeatureExtraction(base_lr={"adamw": 1e-3})
    (phase,) = strategy.plan(model.layout)
    model.begin(phase)
    if change is not None:
        with torch.no_grad():
            change(model)
    return activation_key(split(model, phase), facts)


@pytest.fixture(scope="module")
def base():
    return key_of()


def test_the_same_in_every_process(base):
    code = "from tests.features.test_keys import key_of; print(key_of())"
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": "1"}
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert found.strip() == base
    assert len(base) == 40


@pytest.mark.parametrize(
    "facts",
    [
        {"backbone": "test_resnet2"},
        {"kwargs": {"drop_rate": 0.1}},
        {"transform": "squash 32 bilinear, version 2"},
        {"precision": "bf16-mixed float16"},
        {"data": "4567"},
        {"device": "cuda"},
        *({"versions": {**FACTS.versions, name: "0"}} for name in ("torch", "torchvision", "timm", "pillow")),
    ],
    ids=str,
)
def test_every_fact_counts(base, facts):
    assert key_of(facts=dataclasses.replace(FACTS, **facts)) != base


def flip_a_bit(tensor):
    tensor.view(torch.uint8).flatten()[0] ^= 1


@pytest.mark.parametrize(
    "change",
    [
        lambda model: flip_a_bit(model.backbone.net.conv1[0].weight.data),
        lambda model: flip_a_bit(model.backbone.net.layer3[0].bn1.running_var),
        lambda model: flip_a_bit(model.backbone.net.layer3[0].bn1.num_batches_tracked[None]),
        lambda model: flip_a_bit(model.mean),
        lambda model: flip_a_bit(model.std),
    ],
    ids=["weight", "running_var", "num_batches_tracked", "mean", "std"],
)
def test_every_bit_that_the_prefix_reads_counts(base, change):
    assert key_of(change=change) != base


def test_the_cut_counts():
    assert len({key_of(n) for n in (0, 1, 2, 3)}) == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda model: flip_a_bit(model.backbone.net.layer4[0].conv1.weight.data),
        lambda model: flip_a_bit(model.head.weight.data),
        lambda model: model.backbone.net.layer4[0].bn1.running_mean.add_(1),
        lambda model: setattr(model.head.dropout, "p", 0.7),
        lambda model: torch.rand(3),
    ],
    ids=["trained weight", "head", "running_mean", "dropout", "generator"],
)
def test_what_lies_behind_the_cut_does_not_count(base, change):
    assert key_of(change=change) == base


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": torch.zeros(4)}, {"b": torch.zeros(4)}),
        ({"a": torch.zeros(4)}, {"a": torch.zeros(2, 2)}),
        ({"a": torch.zeros(4)}, {"a": torch.zeros(4, dtype=torch.int32)}),
        ({"a": torch.zeros(4)}, {"a": -torch.zeros(4)}),
        ({"a": torch.zeros(4)}, {"a": torch.zeros(4), "b": torch.zeros(0)}),
        ({"a": torch.eye(2) + torch.eye(2)[0]}, {"a": (torch.eye(2) + torch.eye(2)[0]).T}),
    ],
)
def test_names_types_shapes_and_bytes_count(one, other):
    assert state_digest(one) != state_digest(other)


def test_order_and_memory_format_do_not_count():
    image = torch.rand(2, 3, 4, 4)
    one = {"a": image, "b": torch.ones(())}
    other = {"b": torch.ones(()), "a": image.contiguous(memory_format=torch.channels_last)}
    assert state_digest(one) == state_digest(other)


def test_the_versions_are_those_installed():
    assert FACTS.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(keys._LIBRARIES) == set(FACTS.versions)
