"""Applying a phase: gradients, modes and optimizer groups of a small model with everything that can go wrong in it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tl_experiments.strategies.apply import modules_held_in_eval, param_groups, set_requires_grad
from tl_experiments.types import Block, ModelLayout, Phase


class Net(nn.Module):
    """Dropout beside the blocks and within them, BatchNorm in both blocks, a free parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(3))
        self.stem = nn.Linear(3, 3)
        self.stem_drop = nn.Dropout(0.5)
        self.b0 = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.between = nn.Dropout(0.5)
        self.b1 = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.head_drop = nn.Dropout(0.5)
        self.head = nn.Linear(3, 2)


def names(prefixes: tuple[str, ...]) -> dict[str, int]:
    return {name: p.numel() for name, p in Net().named_parameters() if name.split(".")[0] in prefixes}


LAYOUT = ModelLayout(
    (Block("stem", names(("token", "stem"))), Block("b0", names(("b0",))), Block("b1", names(("b1",)))),
    Block("head", names(("head",))),
)
HEAD, B0, B1 = names(("head",)), names(("b0",)), names(("b1",))
EVERY_MODULE = {"stem", "stem_drop", "b0.0", "b0.1", "b0.2", "between", "b1.0", "b1.1", "b1.2", "head_drop", "head"}


@pytest.mark.parametrize(
    ("trained", "norm_stats", "train_mode"),
    [
        (HEAD, "frozen", {"head"}),
        (B1 | HEAD, "update", {"b1.0", "b1.1", "b1.2", "head_drop", "head"}),
        (B1 | HEAD, "frozen", {"b1.0", "b1.2", "head_drop", "head"}),
        # A frozen block above a trained one is still frozen, statistics and dropout too.
        (B0 | HEAD, "update", {"b0.0", "b0.1", "b0.2", "between", "head"}),
        # One trained bias makes its block a trained one.
        ({"b0.1.bias": 3} | HEAD, "update", {"b0.0", "b0.1", "b0.2", "between", "head"}),
        ({"b0.1.bias": 3} | HEAD, "frozen", {"b0.0", "b0.2", "between", "head"}),
    ],
)
def test_modes(trained, norm_stats, train_mode):
    net = Net()
    phase = Phase(0, dict.fromkeys(trained, 1.0), norm_stats)
    held = {id(module) for module in modules_held_in_eval(net, LAYOUT, phase)}
    leaves = {name: module for name, module in net.named_modules() if not list(module.children())}
    assert set(leaves) == EVERY_MODULE
    assert {name for name, module in leaves.items() if id(module) not in held} == train_mode


def test_requires_grad_follows_the_names_and_old_gradients_go():
    net = Net()
    net.stem.weight.grad = torch.ones(3, 3)
    set_requires_grad(net, Phase(0, dict.fromkeys(HEAD, 1.0)))
    assert {name for name, p in net.named_parameters() if p.requires_grad} == set(HEAD)
    assert net.stem.weight.grad is None  # momentum-free decay would move a frozen tensor with a stale gradient


def test_groups_hold_each_trainable_tensor_once_at_its_rate():
    net = Net()
    phase = Phase(0, {**dict.fromkeys(B0, 0.25), **dict.fromkeys(B1, 0.5), **dict.fromkeys(HEAD, 1.0)})
    rate_of = {}
    for group in param_groups(net, phase, lr=0.1, weight_decay=0.01):
        for parameter in group["params"]:
            assert id(parameter) not in rate_of
            assert group["weight_decay"] == (0.01 if parameter.ndim > 1 else 0.0)
            rate_of[id(parameter)] = group["lr"]
    expected = {id(p): 0.1 * phase.lr_multiplier[n] for n, p in net.named_parameters() if n in phase.lr_multiplier}
    assert rate_of == pytest.approx(expected)


def test_equal_valued_tensors_are_told_apart():
    """Selecting by value, as ``torch.equal`` does, would keep one of the two unit norms."""
    net = Net()
    assert torch.equal(net.b0[1].weight, net.b1[1].weight)
    groups = param_groups(net, Phase(0, {"b0.1.weight": 1.0, "b1.1.weight": 1.0}), lr=1.0, weight_decay=0.0)
    assert {id(p) for group in groups for p in group["params"]} == {id(net.b0[1].weight), id(net.b1[1].weight)}
