"""Frozen means frozen, trained means trained: by the state of the model after real training, for three kinds of net."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from contextlib import contextmanager

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tl_experiments.strategies.plans import frozen_prefix
from tl_experiments.training.build import build
from tl_experiments.training.fit import fit
from tl_experiments.training.history import History
from tl_experiments.types import ModelLayout, Phase

RULE = {"adamw": 1e-3}
SINGLE = ["feature_extraction", "last_n_blocks", "full", "from_scratch"]
# BatchNorm; BatchNorm with children of its own (BatchNormAct2d); attention and dropout; LayerNorm with layer scale
NETS = ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"]


@dataclasses.dataclass(frozen=True)
class HeadThenLastBlock:
    """Two phases, the second at two rates: what LP-FT, gradual unfreezing and LLRD will ask of the mechanism."""

    name: str = "head_then_last_block"
    reinitialize_backbone: bool = False
    base_lr: Mapping[str, float] = dataclasses.field(default_factory=lambda: RULE)

    def plan(self, layout: ModelLayout) -> tuple[Phase, ...]:
        head = dict.fromkeys(layout.head.parameters, 1.0)
        return (
            Phase(0.0, head, "frozen"),
            Phase(0.5, {**head, **dict.fromkeys(layout.blocks[-1].parameters, 0.25)}),
        )


@contextmanager
def rates_of_each_step():
    """The distinct learning rates of every optimizer step taken inside, ascending."""
    seen = []

    def note(optimizer, _args, _kwargs):
        seen.append(sorted({group["lr"] for group in optimizer.param_groups}))

    handle = register_optimizer_step_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def train(cfg, tmp_path):
    """The state before, the trained parts, and the last phase's module."""
    parts = build(cfg)
    before = {name: tensor.clone() for name, tensor in parts.model.state_dict().items()}
    history = History(tmp_path, parts.data.steps_per_epoch, time.perf_counter())
    trainer, module = fit(cfg, parts, history, "cpu", "32-true")
    return before, parts, trainer, module


def config(tiny, net, strategy):
    size = "160" if net == "test_vit" else "32"
    dropout = "{pos_drop_rate: 0.3, proj_drop_rate: 0.3, attn_drop_rate: 0.3}" if net == "test_vit" else "{}"
    name = "full" if strategy == "head_then_last_block" else strategy
    cfg = tiny(
        "backbone=timm",
        f"backbone.name={net}",
        f"backbone.kwargs={dropout}",
        f"backbone.preprocessing.image_size={size}",
        f"freeze_strategy={name}",
        "trainer.max_epochs=3",
        "scheduler=constant",
        "dataset.shots=4",
    )
    return dataclasses.replace(cfg, freeze_strategy=HeadThenLastBlock()) if strategy == "head_then_last_block" else cfg


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("strategy", [*SINGLE, "head_then_last_block"])
def test_what_moves_and_what_does_not(tiny, tmp_path, net, strategy):
    cfg = config(tiny, net, strategy)
    before, parts, trainer, _ = train(cfg, tmp_path)
    after = parts.model.state_dict()
    trained = {name for phase in parts.phases for name in phase.phase.lr_multiplier}
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    parameters = {name for name, _ in parts.model.named_parameters()}

    assert moved & parameters == trained
    assert not {name for name, tensor in after.items() if not torch.isfinite(tensor).all()}
    # Buffers: running statistics move exactly in the blocks that trained with norm_stats="update".
    updating = [phase.phase for phase in parts.phases if phase.phase.norm_stats == "update"]
    blocks = [*parts.model.layout.blocks, parts.model.layout.head]
    may_move = {
        name.rpartition(".")[0]
        for block in blocks
        if any(phase.lr_multiplier.keys() & block.parameters.keys() for phase in updating)
        for name in block.parameters
    }
    assert {name.rpartition(".")[0] for name in moved - parameters} <= may_move
    if net in ("test_resnet", "test_efficientnet") and updating:
        assert moved - parameters  # and they do move

    # The optimizer of the last phase holds each trained tensor exactly once, at the rate of the plan.
    last = parts.phases[-1].phase
    name_of = {id(parameter): name for name, parameter in parts.model.named_parameters()}
    groups = trainer.optimizers[0].param_groups
    rates = {name_of[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rates)
    assert rates == pytest.approx({name: parts.lr * multiple for name, multiple in last.lr_multiplier.items()})


@pytest.mark.parametrize("net", NETS)
def test_a_frozen_prefix_gives_the_same_features_in_train_mode(tiny, net):
    """Dropout and BatchNorm in the prefix are off, even after ``train()``: all passes agree."""
    parts = build(config(tiny, net, "last_n_blocks"))
    phase = parts.phases[0].phase
    parts.model.begin(phase)
    parts.model.train()
    prefix = frozen_prefix(phase, parts.model.layout)
    assert prefix > 0
    seen = []
    first_trained = next(iter(parts.model.layout.blocks[prefix].parameters)).rpartition(".")[0]
    parts.model.get_submodule(first_trained).register_forward_pre_hook(
        lambda _module, args: seen.append(args[0].clone())
    )
    image = next(iter(parts.data.eval_loader("val")))["image"]
    with torch.no_grad():
        for mode in (True, True, False):
            parts.model.train(mode)
            parts.model(image)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_no_activation_of_a_frozen_backbone_is_saved_for_backward(tiny):
    """Counter: a probe saves only what its head needs; full fine-tuning saves the whole net's activations."""

    def saved_bytes(strategy):
        parts = build(tiny(f"freeze_strategy={strategy}"))
        parts.model.begin(parts.phases[0].phase)
        parts.model.train()
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        batch = next(iter(parts.data.eval_loader("val")))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            parts.objective.loss(parts.model, batch)
        return total

    assert saved_bytes("feature_extraction") < 0.01 * saved_bytes("full")
