"""The audit finds each way in which a freeze can be broken."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tl_experiments.errors import TrainingError
from tl_experiments.strategies.apply import set_requires_grad
from tl_experiments.training.audit import FreezeAudit
from tl_experiments.types import Block, ModelLayout, Phase


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))


LAYOUT = ModelLayout(
    (Block("first", {"0.weight": 4, "0.bias": 2}), Block("norm", {"1.weight": 2, "1.bias": 2})),
    Block("head", {"2.weight": 4, "2.bias": 2}),
)
PHASE = Phase(0, {"2.weight": 1.0, "2.bias": 1.0})


def step(net, optimizer, audit):
    net(torch.randn(4, 2)).square().sum().backward()
    optimizer.step()
    audit.see_step(optimizer)


def begin(net, phase=PHASE, layout=LAYOUT):
    set_requires_grad(net, phase)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    net.eval()
    return optimizer, FreezeAudit(net, layout, phase, optimizer)


def test_a_sound_run_passes(net):
    optimizer, audit = begin(net)
    step(net, optimizer, audit)
    audit.check("after 1 step")
    audit.check_frozen("at the end")


def test_a_frozen_weight_that_moves(net):
    optimizer, audit = begin(net)
    step(net, optimizer, audit)
    with torch.no_grad():
        net[0].weight[0, 0] += 1e-7
    with pytest.raises(TrainingError, match=r"1 tensors are frozen, but moved after 1 step, e.g. 0.weight"):
        audit.check("after 1 step")


def test_frozen_statistics_that_move(net):
    _, audit = begin(net)
    net[1].running_mean += 1
    with pytest.raises(TrainingError, match=r"frozen, but moved .* 1.running_mean"):
        audit.check_frozen("at the end")


def test_frozen_statistics_that_move_because_of_a_wrong_mode(net):
    optimizer, audit = begin(net)
    net[1].train()
    step(net, optimizer, audit)
    with pytest.raises(TrainingError, match=r"3 tensors are frozen, but moved .* 1.num_batches_tracked"):
        audit.check("after 1 step")


@pytest.mark.parametrize(("norm_stats", "sound"), [("update", True), ("frozen", False)])
def test_statistics_of_a_trained_block_follow_the_plan(net, norm_stats, sound):
    phase = Phase(0, {**PHASE.lr_multiplier, "1.weight": 1.0, "1.bias": 1.0}, norm_stats)
    optimizer, audit = begin(net, phase)
    net[1].train()
    step(net, optimizer, audit)
    if sound:
        audit.check("after 1 step")
    else:
        with pytest.raises(TrainingError, match=r"3 tensors are frozen, but moved"):
            audit.check("after 1 step")


@pytest.mark.parametrize(("trained", "sound"), [("0", True), ("2", False)])
def test_statistics_without_weights_beside_them_belong_to_the_block_before(trained, sound):
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False), nn.Linear(2, 2))
    first, head = ({f"{number}.weight": 4, f"{number}.bias": 2} for number in (0, 2))
    layout = ModelLayout((Block("first", first),), Block("head", head))
    phase = Phase(0, dict.fromkeys({"0": {**first, **head}, "2": head}[trained], 1.0))
    set_requires_grad(net, phase)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    audit = FreezeAudit(net, layout, phase, optimizer)
    step(net, optimizer, audit)  # in train mode, so that the statistics move
    if sound:
        audit.check("after 1 step")
    else:
        with pytest.raises(TrainingError, match=r"frozen, but moved .* 1.num_batches_tracked"):
            audit.check("after 1 step")


def test_a_tensor_that_no_gradient_reaches(net):
    net.register_parameter("unused", nn.Parameter(torch.ones(1)))
    layout = ModelLayout(LAYOUT.blocks, Block("head", {**LAYOUT.head.parameters, "unused": 1}))
    optimizer, audit = begin(net, Phase(0, {**PHASE.lr_multiplier, "unused": 1.0}), layout)
    step(net, optimizer, audit)
    with pytest.raises(TrainingError, match=r"1 tensors are trainable, but no gradient reaches them .* unused"):
        audit.check("after 1 step")


def test_a_tensor_with_gradients_that_does_not_move(net):
    optimizer, audit = begin(net)
    optimizer.step = lambda: None
    step(net, optimizer, audit)
    step(net, optimizer, audit)
    with pytest.raises(TrainingError, match=r"2 tensors are trainable and have gradients, but did not move"):
        audit.check("after 2 steps")


def test_a_first_step_may_move_nothing(net):
    """ADOPT only takes the measure of the gradients in it."""
    optimizer, audit = begin(net)
    optimizer.step = lambda: None
    step(net, optimizer, audit)
    audit.check("after 1 step")


@pytest.mark.parametrize("lr", [0.0, 1e-12])
def test_steps_too_small_to_show_are_no_fault(net, lr):
    optimizer, audit = begin(net)
    optimizer.param_groups[0]["lr"] = lr
    step(net, optimizer, audit)
    step(net, optimizer, audit)
    assert torch.equal(net[2].weight, audit._before["2.weight"])
    audit.check("after 2 steps")


@pytest.mark.parametrize("broken", ["missing", "twice", "frozen one in"])
def test_groups_that_do_not_match_the_plan(net, broken):
    set_requires_grad(net, PHASE)
    weight, bias = net[2].weight, net[2].bias
    groups = {"missing": [[weight]], "twice": [[weight, bias], [bias]], "frozen one in": [[weight, bias, net[0].bias]]}
    optimizer = torch.optim.SGD([weight, bias], lr=0.1)
    optimizer.param_groups = [{**optimizer.param_groups[0], "params": params} for params in groups[broken]]
    with pytest.raises(TrainingError, match=r"1 tensors are not in exactly one optimizer group"):
        FreezeAudit(net, LAYOUT, PHASE, optimizer)
