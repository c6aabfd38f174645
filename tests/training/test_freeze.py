"""Frozen means frozen, trained means trained: by the state of the model after real training, for twelve families."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from contextlib import contextmanager

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tl_experiments.config.compose import choices
from tl_experiments.errors import ConfigError
from tl_experiments.strategies.plans import frozen_prefix
from tl_experiments.training.build import build
from tl_experiments.training.fit import fit
from tl_experiments.training.history import History
from tl_experiments.types import ModelLayout, Phase

RULE = {"adamw": 1e-3}
OPTIONS = {"surgical": ["freeze_strategy.blocks=[first,last]"], "gradual_unfreezing": ["freeze_strategy.decay=0.8"]}
# Name -> side of the images and kwargs; as small as they get, with four tokens or more.
NETS = {
    "test_resnet": (32, "{}"),  # BatchNorm
    "test_efficientnet": (32, "{}"),  # BatchNorm with children of its own (BatchNormAct2d)
    "regnetx_002": (32, "{}"),
    "mobilenetv3_small_050": (32, "{}"),
    "test_convnext": (32, "{}"),  # LayerNorm and layer scale
    "test_nfnet": (32, "{}"),  # no norm
    "test_vit": (64, "{pos_drop_rate: 0.3, proj_drop_rate: 0.3, attn_drop_rate: 0.3}"),
    "mixer_s32_224": (64, "{mlp_ratio: [0.1, 0.1]}"),
    "swin_tiny_patch4_window7_224": (32, "{embed_dim: 16, depths: [1, 1], num_heads: [1, 2], window_size: 4}"),
    "levit_128s": (128, "{embed_dim: [16, 24, 32], num_heads: [1, 2, 2], key_dim: 8, depth: [1, 1, 1]}"),
    "test_coatnet": (64, "{}"),  # convolution and attention; blocks from the module tree
    "pit_ti_224": (64, "{base_dims: [8, 8, 8], depth: [1, 1, 1], heads: [1, 2, 2]}"),  # blocks from the module tree
}
BATCH_NORM = {"test_resnet", "test_efficientnet", "regnetx_002", "mobilenetv3_small_050", "levit_128s", "test_coatnet"}


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


def train(cfg, tmp_path, *, wake=False):
    """The state before, the trained parts, and the last phase's module.

    ``wake`` moves the weights a little, as pretraining would: timm's random branches start at zero, and no gradient
    passes a branch that starts and stays there.
    """
    parts = build(cfg)
    if wake:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in parts.model.backbone.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    before = {name: tensor.clone() for name, tensor in parts.model.state_dict().items()}
    history = History(tmp_path, parts.data.steps_per_epoch, time.perf_counter())
    fitted = fit(cfg, parts, history, "cpu", "32-true")
    return before, parts, fitted.trainer, fitted.module


def train_watching_rates(cfg, tmp_path, *, wake=False):
    """The state before, the trained parts, and per optimizer step the rate of each parameter, by torch's own hook."""
    seen = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: seen.append(
            [(id(parameter), group["lr"]) for group in optimizer.param_groups for parameter in group["params"]]
        )
    )
    try:
        before, parts, *_ = train(cfg, tmp_path, wake=wake)
    finally:
        hook.remove()
    name_of = {id(parameter): name for name, parameter in parts.model.named_parameters()}
    for step in seen:
        assert len({key for key, _ in step}) == len(step)  # each in one group, once
    return before, parts, [{name_of[key]: rate for key, rate in step} for step in seen]


def config(tiny, net, strategy, *overrides):
    size, kwargs = NETS[net]
    return tiny(
        "backbone=timm",
        f"backbone.name={net}",
        f"backbone.kwargs={kwargs}",
        f"backbone.preprocessing.image_size={size}",
        f"freeze_strategy={strategy}",
        *OPTIONS.get(strategy, []),
        "scheduler=constant",
        "dataset.shots=4",
        *overrides,
    )


def expected_rates(strategy, layout, phase):
    """Parameter name -> multiple of the base rate, for the phase that trains ``phase``, written down once more."""
    everything = {name for block in layout.all_blocks for name in block.parameters}
    head, n = set(layout.head.parameters), len(layout.blocks)
    blocks = [set(block.parameters) for block in layout.blocks]
    if strategy == "feature_extraction":
        return dict.fromkeys(head, 1.0)
    if strategy == "last_n_blocks":
        return dict.fromkeys(head | blocks[n - 1] | blocks[n - 2], 1.0)
    if strategy in ("full", "from_scratch"):
        return dict.fromkeys(everything, 1.0)
    if strategy == "discriminative":
        return {**dict.fromkeys(head, 1.0), **{name: 0.75 ** (n - i) for i in range(n) for name in blocks[i]}}
    if strategy == "gradual_unfreezing":
        thawed = [i for i in range(n) if blocks[i] & phase.lr_multiplier.keys()]
        assert thawed == list(range(n - len(thawed), n))
        assert len(thawed) == round(phase.start_fraction / 0.5 * n)
        return {**dict.fromkeys(head, 1.0), **{name: 0.8 ** (n - i) for i in thawed for name in blocks[i]}}
    if strategy == "lp_ft":
        return dict.fromkeys(head, 1.0) if phase.start_fraction == 0 else dict.fromkeys(everything, 0.1)
    if strategy == "surgical":
        chosen = [*range(round(n / 3)), *range(round(2 * n / 3), n)]
        return dict.fromkeys(head.union(*(blocks[i] for i in chosen)), 1.0)
    if strategy == "bitfit":
        return dict.fromkeys(
            head | {name for name in everything if name.endswith((".bias", ".q_bias", ".v_bias"))}, 1.0
        )
    assert strategy == "norm_only"
    return dict.fromkeys(head.union(*(block.norms for block in layout.blocks)), 1.0)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("strategy", choices("freeze_strategy"))
def test_what_moves_and_what_does_not(tiny, tmp_path, net, strategy):
    cfg = config(tiny, net, strategy)
    if (net, strategy) == ("test_nfnet", "norm_only"):
        with pytest.raises(ConfigError, match=r"no norms with parameters -> freeze_strategy=bitfit"):
            build(cfg)
        return
    before, parts, rates = train_watching_rates(cfg, tmp_path, wake=True)
    layout, after = parts.model.layout, parts.model.state_dict()

    # At each step, the optimizer holds exactly what the phase trains, each tensor once, at its rate.
    assert len(rates) == sum(phase.steps for phase in parts.phases)
    trained = set()
    for phase in parts.phases:
        expected = {name: parts.lr * m for name, m in expected_rates(strategy, layout, phase.phase).items()}
        trained |= expected.keys()
        for step in rates[phase.first_step : phase.first_step + phase.steps]:
            assert step == pytest.approx(expected)

    moved = {name for name in after if not torch.equal(before[name], after[name])}
    parameters = {name for name, _ in parts.model.named_parameters()}
    assert moved & parameters == trained
    assert not {name for name, tensor in after.items() if not torch.isfinite(tensor).all()}

    # Running statistics move exactly in the blocks that trained with norm_stats="update", and no other buffer does.
    updating = [phase.phase for phase in parts.phases if phase.phase.norm_stats == "update"]
    live = {
        name.rpartition(".")[0]
        for block in layout.all_blocks
        if any(phase.lr_multiplier.keys() & block.parameters.keys() for phase in updating)
        for name in block.parameters
    }
    owners = {name.rpartition(".")[0] for name in after if name.endswith("running_mean")}
    assert bool(owners) == (net in BATCH_NORM)
    for statistic in ("running_mean", "running_var", "num_batches_tracked"):
        assert {owner for owner in owners if f"{owner}.{statistic}" in moved} == owners & live
    assert {name.rpartition(".")[0] for name in moved - parameters} == owners & live


@pytest.mark.parametrize("scheduler", choices("scheduler"))
def test_discriminative_rates_stay_apart_under_every_schedule(tiny, tmp_path, scheduler):
    """timm's own layer decay is lost under torch's schedulers: all groups end at one rate."""
    cfg = config(tiny, "test_vit", "discriminative", f"scheduler={scheduler}", "freeze_strategy.decay=0.5")
    _, parts, rates = train_watching_rates(cfg, tmp_path)
    head, n = "head.weight", len(parts.model.layout.blocks)
    for step in rates:
        assert len(set(step.values())) == n + 1
        for depth, block in enumerate(reversed(parts.model.layout.blocks), start=1):
            assert [step[name] / step[head] for name in block.parameters] == pytest.approx(
                [0.5**depth] * len(block.parameters)
            )


def test_every_phase_of_gradual_unfreezing_is_trained(tiny, tmp_path):
    cfg = config(tiny, "test_resnet", "gradual_unfreezing", "trainer.max_epochs=4")
    _, parts, rates = train_watching_rates(cfg, tmp_path)
    assert [phase.steps for phase in parts.phases] == [2, 2, 2, 2, 2, 10]
    sizes = [len(block.parameters) for block in reversed(parts.model.layout.all_blocks)]
    counts = [len(rates[phase.first_step]) for phase in parts.phases]
    assert counts == [sum(sizes[: i + 1]) for i in range(6)]


def test_both_phases_of_lp_ft_have_a_schedule_of_their_own(tiny, tmp_path):
    overrides = ["scheduler=cosine", "scheduler.warmup_fraction=0", "optimizer.lr=0.01"]
    _, _, rates = train_watching_rates(config(tiny, "test_resnet", "lp_ft", *overrides), tmp_path)
    expected = []
    for base, steps in ((0.01, 5), (0.001, 5)):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
        reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        for _ in range(steps):
            expected.append(reference.get_last_lr()[0])
            optimizer.step()
            reference.step()
    for step, rate in zip(rates, expected, strict=True):
        assert list(step.values()) == pytest.approx([rate] * len(step))


def test_unfreezing_tensors_of_equal_values_loses_none(tiny, tmp_path):
    """The unit norms of all blocks are equal tensors; told apart by value, one of them would train."""
    cfg = config(tiny, "test_convnext", "gradual_unfreezing", "trainer.max_epochs=4")
    before, parts, rates = train_watching_rates(cfg, tmp_path)
    norms = [name for block in parts.model.layout.blocks for name in block.norms if name.endswith("weight")]
    same = [name for name in norms if torch.equal(before[name], before[norms[-1]])]
    assert len(same) > 2
    assert set(same) <= rates[-1].keys()
    after = parts.model.state_dict()
    assert not [name for name in same if torch.equal(before[name], after[name])]


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
            parts.objective.loss(parts.model.logits, batch)
        return total

    assert saved_bytes("feature_extraction") < 0.01 * saved_bytes("full")
