"""Applying a phase: gradients, modes and optimizer groups of a small model with everything that can go wrong in it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tl_experiments.strategies.apply import modules_held_in_eval, param_groups, set_requires_grad
from tl_experiments.types import Block, ModelLayout, Phase


class NormAct(nn.BatchNorm1d):
    """A norm with a child, as timm's BatchNormAct2d: not a leaf, and its mode matters all the same."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.act = nn.ReLU()


class Net(nn.Module):
    """Dropout beside the blocks and within them, BatchNorm in both blocks, a free parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(3))
        self.stem = nn.Linear(3, 3)
        self.stem_drop = nn.Dropout(0.5)
        self.b0 = nn.Sequential(nn.Linear(3, 3), NormAct(3), nn.Dropout(0.5))
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
B0_ALL = {"b0", "b0.0", "b0.1", "b0.1.act", "b0.2", "between"}
B1_ALL = {"b1", "b1.0", "b1.1", "b1.2", "head_drop"}


@pytest.mark.parametrize(
    ("trained", "norm_stats", "train_mode"),
    [
        (HEAD, "frozen", {"head"}),
        (B1 | HEAD, "update", B1_ALL | {"head"}),
        (B1 | HEAD, "frozen", B1_ALL - {"b1.1"} | {"head"}),
        # A frozen block above a trained one is still frozen, statistics and dropout too.
        (B0 | HEAD, "update", B0_ALL | {"head"}),
        # One trained bias makes its block a trained one.
        ({"b0.1.bias": 3} | HEAD, "update", B0_ALL | {"head"}),
        ({"b0.1.bias": 3} | HEAD, "frozen", B0_ALL - {"b0.1"} | {"head"}),
        (B0 | B1 | HEAD, "update", B0_ALL | B1_ALL | {"head"}),
    ],
)
def test_modes(trained, norm_stats, train_mode):
    net = Net()
    phase = Phase(0, dict.fromkeys(trained, 1.0), norm_stats)
    held = {id(module) for module in modules_held_in_eval(net, LAYOUT, phase)}
    in_train_mode = {name for name, module in net.named_modules() if id(module) not in held}
    assert in_train_mode == {"", *train_mode}  # the root trains wherever anything does


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
