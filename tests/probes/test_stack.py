"""Many heads in one computation against as many heads of torch, each with its own optimizer."""

from __future__ import annotations

import io
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tl_experiments.probes.stack import ProbeStack
from tl_experiments.probes.updates import SGD, AdamW

HEADS, CLASSES, DIM, BATCH = 5, 7, 33, 24
LR = (1e-3, 1e-2, 0.1, 3e-2, 0.3)
OPTIONS: dict[str, Any] = {
    "weight_decay": (0.0, 0.01, 0.1, 0.0, 0.5),
    "label_smoothing": (0.0, 0.1, 0.0, 0.3, 0.2),
    "clip_norm": (None, 0.1, 1.0, 0.03, None),
}
PLAIN: dict[str, Any] = {"weight_decay": [0.0] * 5, "label_smoothing": [0.0] * 5, "clip_norm": [None] * 5}
OPTIMIZERS = [
    AdamW(),
    AdamW(betas=(0.8, 0.95)),
    SGD(),
    SGD(momentum=0.9),
    SGD(momentum=0.9, nesterov=True),
]
CLASS_WEIGHT = torch.tensor([0.0, 0.5, 1.0, 1.0, 2.0, 3.0, 0.1])


def start(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(HEADS, CLASSES, DIM, generator=generator, dtype=torch.float64) * 0.1
    return weight.to(dtype), torch.linspace(-0.1, 0.1, HEADS * CLASSES, dtype=dtype).view(HEADS, CLASSES)


def batches(dtype: torch.dtype, steps: int) -> list[tuple[Tensor, Tensor]]:
    """Labels that the features tell something about; every fourth batch is smaller than the others."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(CLASSES, DIM, generator=generator, dtype=torch.float64)
    found = []
    for number in range(steps):
        labels = torch.randint(0, CLASSES, (BATCH if number % 4 else 9,), generator=generator)
        noise = torch.randn(len(labels), DIM, generator=generator, dtype=torch.float64)
        found.append(((centres[labels] + 2 * noise).to(dtype), labels))
    return found


def separate(optimizer: AdamW | SGD, options: dict[str, Any], dtype: torch.dtype, steps: int, class_weight=None):
    """Weights, biases and losses of heads that torch trains one by one."""
    weight, bias = start(dtype)
    heads, losses = [], []
    for k in range(HEADS):
        head = nn.Linear(DIM, CLASSES, dtype=dtype)
        with torch.no_grad():
            head.weight.copy_(weight[k])
            head.bias.copy_(bias[k])
        groups = [
            {"params": [head.weight], "weight_decay": options["weight_decay"][k]},
            {"params": [head.bias], "weight_decay": 0.0},
        ]
        reference: torch.optim.Optimizer
        if isinstance(optimizer, AdamW):
            reference = torch.optim.AdamW(groups, betas=optimizer.betas)
        else:
            reference = torch.optim.SGD(groups, lr=1.0, momentum=optimizer.momentum, nesterov=optimizer.nesterov)
        for step, (features, labels) in enumerate(batches(dtype, steps)):
            for group in reference.param_groups:
                group["lr"] = LR[k] / (1 + step)
            reference.zero_grad()
            smoothing = options["label_smoothing"][k]
            loss = functional.cross_entropy(head(features), labels, class_weight, label_smoothing=smoothing)
            loss.backward()
            if options["clip_norm"][k] is not None:
                nn.utils.clip_grad_norm_(head.parameters(), options["clip_norm"][k])
            reference.step()
        heads.append(head)
        losses.append(loss.detach())
    return torch.stack([h.weight for h in heads]), torch.stack([h.bias for h in heads]), torch.stack(losses)


def together(stack: ProbeStack, dtype: torch.dtype, steps: int, first: int = 0) -> Tensor:
    losses = torch.empty(0)
    for step, (features, labels) in itertools.islice(enumerate(batches(dtype, steps)), first, None):
        losses = stack.step(features, labels, torch.tensor(LR, dtype=dtype) / (1 + step))
    return losses


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest |dW| / |W| of any head."""
    gap = (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    return gap.max().item()


@pytest.mark.parametrize(
    ("dtype", "steps", "tolerance"), [(torch.float32, 1, 1e-5), (torch.float32, 100, 1e-3), (torch.float64, 100, 1e-10)]
)
@pytest.mark.parametrize("options", [OPTIONS, PLAIN], ids=["options", "plain"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_heads_together_are_torchs_heads(optimizer, options, dtype, steps, tolerance):
    stack = ProbeStack(*start(dtype), optimizer, **options)
    losses = together(stack, dtype, steps)
    weight, bias, expected = separate(optimizer, options, dtype, steps)
    assert distance(stack.weight, weight) <= tolerance
    assert distance(stack.bias, bias) <= tolerance
    torch.testing.assert_close(losses, expected, rtol=tolerance, atol=tolerance)
    assert distance(stack.weight, start(dtype)[0]) > 1e-3  # something moved


@pytest.mark.parametrize("smoothing", [PLAIN["label_smoothing"], OPTIONS["label_smoothing"]], ids=["hard", "smooth"])
def test_class_weights_are_torchs(smoothing):
    options = OPTIONS | {"label_smoothing": smoothing}
    class_weight = CLASS_WEIGHT.double()
    stack = ProbeStack(
        *start(torch.float64), AdamW(), **options, class_weight=class_weight.expand(HEADS, -1).contiguous()
    )
    losses = together(stack, torch.float64, 20)
    weight, bias, expected = separate(AdamW(), options, torch.float64, 20, class_weight)
    assert distance(stack.weight, weight) <= 1e-10
    assert distance(stack.bias, bias) <= 1e-10
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("planted", [torch.nan, torch.inf, 1e38])
def test_a_head_that_is_lost_touches_no_other(optimizer, planted):
    stacks = [ProbeStack(*start(torch.float32), optimizer, **OPTIONS) for _ in range(2)]
    stacks[0].weight[2, 1, 3] = planted
    losses = [together(stack, torch.float32, 10) for stack in stacks]
    others = torch.tensor([0, 1, 3, 4])
    assert not torch.isfinite(stacks[0].weight[2]).all()
    assert not torch.isfinite(losses[0][2])
    for one, two in [(losses[0], losses[1]), (stacks[0].weight, stacks[1].weight), (stacks[0].bias, stacks[1].bias)]:
        assert torch.equal(one[others], two[others])


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("cut", [0, 5])
def test_a_stack_goes_on_from_its_state_bit_for_bit(optimizer, cut):
    through, before = (ProbeStack(*start(torch.float32), optimizer, **OPTIONS) for _ in range(2))
    together(through, torch.float32, 12)
    together(before, torch.float32, cut)
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    after = ProbeStack(*(torch.zeros_like(part) for part in start(torch.float32)), optimizer, **OPTIONS)
    together(after, torch.float32, 3)  # what it knew before the load is gone
    after.load_state_dict(torch.load(file, weights_only=True))
    together(after, torch.float32, 12, first=cut)
    assert torch.equal(after.weight, through.weight)
    assert torch.equal(after.bias, through.bias)


def test_a_state_is_no_view_of_the_stack():
    stack = ProbeStack(*start(torch.float32), AdamW(), **OPTIONS)
    together(stack, torch.float32, 2)
    state = stack.state_dict()
    copies = {name: tensor.clone() for name, tensor in state.items()}
    together(stack, torch.float32, 3, first=2)
    assert all(torch.equal(state[name], copies[name]) for name in state)


def test_logits_are_those_of_each_head():
    weight, bias = start(torch.float64)
    (features, _), *_ = batches(torch.float64, 1)
    found = ProbeStack(weight, bias, SGD(), **OPTIONS).logits(features)
    expected = torch.stack([functional.linear(features, *head) for head in zip(weight, bias, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_start_is_copied():
    weight, bias = start(torch.float32)
    stack = ProbeStack(weight, bias, SGD(), **OPTIONS)
    together(stack, torch.float32, 1)
    assert torch.equal(weight, start(torch.float32)[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_heads_together_on_a_gpu(optimizer):
    stack = ProbeStack(*(part.cuda() for part in start(torch.float64)), optimizer, **OPTIONS)
    for step, (features, labels) in enumerate(batches(torch.float64, 50)):
        stack.step(features.cuda(), labels.cuda(), torch.tensor(LR, dtype=torch.float64, device="cuda") / (1 + step))
    weight, bias, _ = separate(optimizer, OPTIONS, torch.float64, 50)
    assert distance(stack.weight.cpu(), weight) <= 1e-10
    assert distance(stack.bias.cpu(), bias) <= 1e-10
