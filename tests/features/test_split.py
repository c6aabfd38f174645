"""A cut model against the live one, whose code runs whole: logits, gradients, statistics, for every kind of net."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from tl_experiments.backbones.report import WeightsReport
from tl_experiments.backbones.timm_backbone import InputSpec, TimmBackbone
from tl_experiments.config.heads import AttentionPool
from tl_experiments.features.split import Split, split
from tl_experiments.strategies.plans import Bitfit, Full, GradualUnfreezing, LastNBlocks, NormOnly, Surgical
from tl_experiments.training.model import TransferModel
from tl_experiments.types import Block, ModelLayout, Phase

RULE = {"adamw": 1e-3}
# Name -> side of the images and kwargs; as small as they get.
NETS = {
    "test_resnet": (32, {}),
    "resnet18": (32, {}),
    "test_efficientnet": (32, {}),  # BatchNormAct2d
    "test_vit": (64, {}),
    "test_convnext": (32, {}),
    "mobilenetv2_050": (32, {}),
    "mobilenetv3_small_050": (32, {}),
    "regnetx_002": (32, {}),
    "densenet121": (32, {"growth_rate": 4, "block_config": (2, 3, 3)}),
    "swin_tiny_patch4_window7_224": (64, {"embed_dim": 16, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4}),
    "swinv2_tiny_window8_256": (64, {"embed_dim": 16, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4}),
    "levit_128s": (128, {"embed_dim": [16, 24, 32], "num_heads": [1, 2, 2], "key_dim": 8, "depth": [1, 2, 2]}),
    "test_maxvit": (64, {}),
    "test_coatnet": (64, {}),
    "mixer_s32_224": (64, {"mlp_ratio": [0.1, 0.1]}),
    "beit_base_patch16_224": (64, {"embed_dim": 32, "depth": 4, "num_heads": 2}),
    "eva02_tiny_patch14_224": (56, {"embed_dim": 32, "depth": 4, "num_heads": 2}),
    "xcit_nano_12_p16_224": (64, {"depth": 4, "embed_dim": 32, "num_heads": 2}),
    "hiera_tiny_224": (224, {"embed_dim": 8, "num_heads": 1, "stages": [1, 1, 2, 1]}),  # control flow on sizes
    "test_nfnet": (32, {}),
}


def images(model, n, seed=7):
    spec, generator = model.backbone.input_spec, torch.Generator().manual_seed(seed)
    shape = (n, spec.channels, spec.image_size, spec.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def step(model, logits):
    """Loss gradients by name and buffers after one training step's forward and backward under one seed."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.zero_grad()
    model.train()
    torch.manual_seed(3)
    functional.cross_entropy(logits(), torch.tensor([0, 1, 2, 1])).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    moved = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return gradients, moved


def check_equal(model, phase):
    """The split of ``model`` computes what the model computes, and touches nothing."""
    model.begin(phase)
    model.train()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    random = torch.get_rng_state()
    parts = split(model, phase)
    assert isinstance(parts, Split), parts
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]

    batch = images(model, 4)
    activations = parts.prefix(batch)
    for tensor in activations:
        assert len(tensor) == 4
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    kept = [tensor.clone() for tensor in activations]

    expected, expected_buffers = step(model, lambda: model(batch))
    found, found_buffers = step(model, lambda: parts.tail(*activations))
    assert expected.keys() == found.keys() == phase.lr_multiplier.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)
    for name, buffer in expected_buffers.items():
        torch.testing.assert_close(found_buffers[name], buffer, rtol=1e-6, atol=1e-7)
    assert all(torch.equal(tensor, copied) for tensor, copied in zip(activations, kept, strict=True))

    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(parts.tail(*activations), model(batch), rtol=1e-5, atol=1e-5)
        one = images(model, 1, seed=8)
        torch.testing.assert_close(parts.tail(*parts.prefix(one)), model(one), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return parts


def plan(strategy, model, phase=0):
    return strategy.plan(model.layout)[phase]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("n", [0, 2])
def test_the_last_blocks_after_the_cut(model_of, net, n):
    size, kwargs = NETS[net]
    model = model_of(net, size, **kwargs)
    parts = check_equal(model, plan(LastNBlocks(n=n, base_lr=RULE), model))
    blocks = model.layout.blocks
    frozen = {name for block in blocks[: len(blocks) - n] for name in block.parameters}
    parameters = {name for name, _ in model.named_parameters()}
    assert parts.prefix_state.keys() & parameters == frozen
    assert {"mean", "std"} <= parts.prefix_state.keys()
    assert (parts.cut == "after the backbone") == (n == 0)


@pytest.mark.parametrize("net", NETS)
def test_blocks_in_the_middle(model_of, net):
    size, kwargs = NETS[net]
    model = model_of(net, size, **kwargs)
    middle = len(model.layout.blocks) // 2
    check_equal(model, plan(Surgical(blocks=(str(middle),), base_lr=RULE), model))


@pytest.mark.parametrize("net", ["test_resnet", "test_vit", "densenet121"])
def test_every_phase_of_gradual_unfreezing(model_of, net):
    size, kwargs = NETS[net]
    model = model_of(net, size, **kwargs)
    strategy = GradualUnfreezing(unfreeze_fraction=0.5, decay=1.0, norm_stats="update", base_lr=RULE)
    *phases, everything = strategy.plan(model.layout)
    flops = [check_equal(model, phase).flops for phase in phases]
    assert len(flops) == len(model.layout.blocks)
    assert flops == sorted(flops, reverse=True)
    model.begin(everything)
    assert split(model, everything) == "nothing frozen stands before what the phase trains"


@pytest.mark.parametrize(
    ("net", "strategy"),
    [("test_resnet", Bitfit), ("test_resnet", NormOnly), ("test_resnet", Full), ("test_vit", Bitfit)],
)
def test_what_trains_from_the_first_block_on_has_no_prefix(model_of, net, strategy):
    model = model_of(net, NETS[net][0])
    phase = plan(strategy(base_lr=RULE), model)
    model.begin(phase)
    assert split(model, phase) == "nothing frozen stands before what the phase trains"


def test_a_stem_without_a_norm_is_all_that_norm_only_leaves_frozen(model_of):
    model = model_of("test_vit", 64)
    parts = check_equal(model, plan(NormOnly(base_lr=RULE), model))
    assert parts.cut == "after patch_embed"


@pytest.mark.parametrize("net", ["test_resnet", "test_efficientnet"])
def test_statistics_that_stay_as_they_are(model_of, net):
    model = model_of(net, 32)
    check_equal(model, plan(LastNBlocks(n=2, norm_stats="frozen", base_lr=RULE), model))


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("net", ["test_vit", "test_resnet", "swin_tiny_patch4_window7_224"])
def test_a_head_that_reads_tokens(model_of, net, n):
    size, kwargs = NETS[net]
    model = model_of(net, size, AttentionPool(num_heads=2, dropout=0.2), **kwargs)
    check_equal(model, plan(LastNBlocks(n=n, base_lr=RULE), model))


@pytest.mark.parametrize(
    ("net", "kwargs"),
    [
        ("test_vit", {"pos_drop_rate": 0.3, "proj_drop_rate": 0.3, "attn_drop_rate": 0.3, "drop_path_rate": 0.5}),
        ("test_convnext", {"drop_path_rate": 0.5, "drop_rate": 0.2}),
        ("test_efficientnet", {"drop_path_rate": 0.5, "drop_rate": 0.2}),
        ("densenet121", {"drop_rate": 0.3, "growth_rate": 4, "block_config": (2, 3, 3)}),
    ],
)
@pytest.mark.parametrize("n", [0, 2])
def test_dropout_acts_in_the_tail_alone(model_of, net, kwargs, n):
    """The same seed gives the same gradients, though the live pass runs the frozen part too."""
    model = model_of(net, NETS[net][0], **kwargs)
    parts = check_equal(model, plan(LastNBlocks(n=n, base_lr=RULE), model))
    model.train()
    activations = parts.prefix(images(model, 4))
    assert not torch.equal(parts.tail(*activations), parts.tail(*activations))
    again = parts.prefix(images(model, 4))
    assert all(torch.equal(one, other) for one, other in zip(activations, again, strict=True))


def test_several_tensors_cross_a_cut_inside_a_dense_block(model_of):
    size, kwargs = NETS["densenet121"]
    model = model_of("densenet121", size, **kwargs)
    parts = check_equal(model, plan(LastNBlocks(n=1, base_lr=RULE), model))
    assert [tensor.shape[1] for tensor in parts.prefix(images(model, 2))] == [10, 4, 4]
    assert parts.cut == "after features.transition2, features.denseblock3.denselayer1, features.denseblock3.denselayer2"


@pytest.mark.parametrize("net", ["test_vit", "test_resnet", "test_convnext"])
def test_gradient_checkpointing_around_the_cut_is_not_lost(model_of, net):
    model = model_of(net, NETS[net][0])
    model.backbone.checkpoint_gradients()
    check_equal(model, plan(LastNBlocks(n=0, base_lr=RULE), model))
    phase = plan(LastNBlocks(n=1, base_lr=RULE), model)
    model.begin(phase)
    assert split(model, phase) == "gradient checkpointing spans the cut"


def test_a_compiled_net(model_of):
    model = model_of("test_resnet", 32)
    model.backbone.compile(backend="eager")
    check_equal(model, plan(LastNBlocks(n=1, base_lr=RULE), model))


def test_channels_last(model_of):
    contiguous = model_of("test_resnet", 32)
    model = type(contiguous)(contiguous.backbone, contiguous.head, contiguous.layout, "channels_last")
    parts = check_equal(model, plan(LastNBlocks(n=1, base_lr=RULE), model))
    seen = []
    block = model.get_submodule("backbone.net.layer4")
    block.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    parts.tail(*parts.prefix(images(model, 4)))
    assert seen == [True]


class Net(nn.Module):
    """Two layers, with ``between`` written out in the model's own code."""

    head_hidden_size = 4

    def __init__(self, between):
        super().__init__()
        self.first, self.doubling, self.last = nn.Conv2d(3, 4, 3), Doubling(), nn.Linear(4, 4)
        self.between = between

    def forward_features(self, x):
        return self.last(self.between(self, self.first(x)))

    def forward_head(self, x, pre_logits):
        return x.mean(0) if x.ndim == 3 else x


def pool(x):
    return x.mean((2, 3))


def with_a_constant(net, x):
    with torch._C.DisableTorchFunction():
        hidden = x.mean((2, 3))
    return hidden * 2


class Doubling(nn.Module):
    """Puts other tensors into the list that it is given, as the stages of HRNet do."""

    def forward(self, tensors):
        for i in range(len(tensors)):
            tensors[i] = tensors[i] * 2
        return tensors


def through_a_list(net, x):
    return sum(net.doubling([pool(x), pool(x) + 1]))


def set_columns(net, x):
    y = pool(x)
    y[:, :2] = 0
    return y


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda net, x: pool(x) * x.mean().item(), "item makes a number of the image's features"),
        (lambda net, x: pool(x if x.sum() > 1e9 else -x), "__bool__ makes a number of the image's features"),
        (lambda net, x: pool(x) / float(len(x)), "torch.Tensor.div is called with 2.0 for 2 images and 3.0 for 3"),
        (lambda net, x: pool(x) + x.mean((0, 2, 3)), "the parts differ from the whole by"),
        (lambda net, x: torch.stack(list(pool(x))), "torch.stack is called with more tensors for more images"),
        (lambda net, x: pool(x) / len(x), "the parts differ from the whole by"),
        (lambda net, x: pool(x).flip(0), "the parts differ from the whole by"),
        (lambda net, x: pool(x) * (2 if net.training else 1), "its frozen part computes something else in train mode"),
        (lambda net, x: pool(x) * 2 if len(x) == 3 else pool(x), "its calls depend on the images"),
        (
            lambda net, x: x.flatten(2).permute(2, 0, 1),
            "permute gives has no row for each image, its shape is",
        ),
        (with_a_constant, "is called with a tensor of unknown origin"),
    ],
)
def test_the_reason_why_it_trains_live(between, reason):
    model, phase = two_layers(between)
    found = split(model, phase)
    assert isinstance(found, str)
    assert reason in found
    assert "\n" not in found


@pytest.mark.parametrize(
    "between",
    [
        lambda net, x: pool(x).relu_() + torch.arange(len(x))[:, None],
        lambda net, x: functional.dropout(pool(x), 0.5, net.training),
        lambda net, x: torch.cat([part * 2 for part in pool(x).split([1, 3], dim=1)], dim=1),
        lambda net, x: pool(x)[:, [3, 2, 1, 0]] * net.last.weight.shape[0],
        lambda net, x: x.flatten(2).transpose(1, 2).reshape(-1, 4).unflatten(0, (len(x), -1)).mean(1),
        set_columns,
        through_a_list,
    ],
)
def test_what_stands_between_the_layers(between):
    model, phase = two_layers(between)
    parts = check_equal(model, phase)
    assert parts.cut == "after first"


def test_what_crosses_the_cut_is_not_overwritten():
    """Trained code that works in place gets a copy: the activations serve every epoch."""
    model, phase = two_layers(lambda net, x: functional.relu_(pool(x) - net.last.bias))
    check_equal(model, phase)
    model, phase = two_layers(lambda net, x: pool(x))
    model.backbone.net.last.register_forward_pre_hook(lambda _, args: (args[0].relu_(),))
    check_equal(model, phase)


def two_layers(between):
    """A model of which the last layer and the head train."""
    net, head = Net(between), nn.Linear(4, 3)
    spec = InputSpec(image_size=8, mean=(0.5,) * 3, std=(0.2,) * 3, interpolation="bilinear", crop_fraction=1.0)
    backbone = TimmBackbone(net, spec, WeightsReport(source="random", total=4))
    blocks = tuple(
        Block(layer, {f"backbone.net.{layer}.{kind}": 1 for kind in ("weight", "bias")}) for layer in ("first", "last")
    )
    layout = ModelLayout(blocks, Block("head", {"head.weight": 12, "head.bias": 3}))
    phase = Phase(0.0, dict.fromkeys([*blocks[1].parameters, *layout.head.parameters], 1.0))
    model = TransferModel(backbone, head, layout)
    model.begin(phase)
    return model, phase
