"""What trains on kept activations ends where the live run ends, which computes the whole net in every step."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional

from tests.features.conftest import build_model
from tests.training.test_freeze import NETS, OPTIONS
from tests.training.watching import distance, watched
from tl_experiments.data.device import Room
from tl_experiments.features.activations import Activations
from tl_experiments.features.memory_table import MemoryTable
from tl_experiments.features.rows import columns_of, row_bytes
from tl_experiments.features.split import split
from tl_experiments.probes import updates
from tl_experiments.probes.stack import ProbeStack
from tl_experiments.strategies.plans import FeatureExtraction, LastNBlocks
from tl_experiments.training.module import TransferModule
from tl_experiments.training.run import run

DENSE = "densenet121"  # several tensors cross the cut
EVA = "eva02_tiny_patch14_224"
SMALL = {
    **NETS,
    DENSE: (32, "{growth_rate: 4, block_config: [2, 3, 3]}"),
    EVA: (56, "{embed_dim: 32, depth: 4, num_heads: 2}"),
}
FAMILIES = [
    "test_resnet",
    "test_efficientnet",
    "mobilenetv3_small_050",
    "test_convnext",
    "test_nfnet",
    "levit_128s",
    "pit_ti_224",
    DENSE,
    EVA,
]
FEW = ["dataset.shots=8", "debug.images_per_split=80"]
HUNDRED_STEPS = [*FEW, "trainer.max_epochs=10"]
SIX_STEPS = [*FEW, "trainer.max_epochs=2", "trainer.batch_size=32"]


def config(tiny, net, strategy, *overrides):
    size, kwargs = SMALL[net]
    return tiny(
        "backbone=timm",
        f"backbone.name={net}",
        f"backbone.kwargs={kwargs}",
        f"backbone.preprocessing.image_size={size}",
        f"freeze_strategy={strategy}",
        *OPTIONS.get(strategy, []),
        *overrides,
    )


def both_ways(tiny, tmp_path, net, strategy, *overrides):
    """Cached, and live."""
    return [
        watched(config(tiny, net, strategy, f"feature_cache={way}", *overrides), tmp_path / way)
        for way in ("auto", "off")
    ]


def check_equal(cached, live):
    """The tolerances of float32: 1e-5 after a step, 1e-3 after a hundred."""
    assert 1 in live.steps
    assert cached.steps.keys() == live.steps.keys()
    for step, expected in live.steps.items():
        assert distance(cached.steps[step], expected) <= (1e-5 if step == 1 else 1e-3)
    assert live.record.work["cached_phases"] == []
    assert live.record.work["images_encoded"] == 0
    for split_name in ("val", "test"):
        found, expected = (one.record.metrics[split_name] for one in (cached, live))
        assert found == pytest.approx(expected, rel=1e-3, nan_ok=True)
    assert cached.moved_while_frozen() == []
    assert live.moved_while_frozen() == []


@pytest.mark.parametrize("net", FAMILIES)
def test_a_probe(tiny, tmp_path, net):
    cached, live = both_ways(tiny, tmp_path, net, "feature_extraction", *HUNDRED_STEPS)
    check_equal(cached, live)
    assert cached.record.work["images_encoded"] == sum(cached.record.data["sizes"].values())
    assert len(live.steps) == 2


@pytest.mark.parametrize("net", FAMILIES)
def test_the_last_blocks(tiny, tmp_path, net):
    overrides = [*HUNDRED_STEPS, "optimizer=sgd", "optimizer.lr=0.01"]
    cached, live = both_ways(tiny, tmp_path, net, "last_n_blocks", *overrides)
    check_equal(cached, live)
    assert cached.record.work["cached_phases"] == [0]
    assert len(live.steps) == 2


@pytest.mark.parametrize("net", ["test_resnet", DENSE])
def test_the_middle(tiny, tmp_path, net):
    cached, live = both_ways(tiny, tmp_path, net, "surgical", "freeze_strategy.blocks=[middle]", *HUNDRED_STEPS)
    check_equal(cached, live)
    assert cached.record.work["cached_phases"] == [0]


@pytest.mark.parametrize(
    ("strategy", "epochs", "cached_phases"), [("lp_ft", 4, [0]), ("gradual_unfreezing", 20, [0, 1, 2, 3, 4])]
)
def test_the_early_phases(tiny, tmp_path, strategy, epochs, cached_phases):
    overrides = [
        "dataset.shots=4",
        "debug.images_per_split=40",
        f"trainer.max_epochs={epochs}",
        "optimizer=sgd",
        "optimizer.lr=0.01",
    ]
    cached, live = both_ways(tiny, tmp_path, "test_resnet", strategy, *overrides)
    check_equal(cached, live)
    assert cached.record.work["cached_phases"] == cached_phases
    assert len(cached.starts) == len(cached.record.phases) == len(cached_phases) + 1


@pytest.mark.parametrize(
    ("net", "overrides", "reason"),
    [
        ("test_resnet", ["trainer.gradient_checkpointing=true"], "gradient checkpointing spans the cut"),
        (
            "swin_tiny_patch4_window7_224",
            [],
            "its frozen part, up to after patch_embed, is computed faster than 4,096 bytes an image are read",
        ),
        ("test_resnet", ["augmentation=flip_crop"], "augmentation=flip_crop makes each view anew"),
        ("test_resnet", ["trainer.max_epochs=1"], "the phase sees most images once"),
    ],
)
def test_the_reason_why_a_run_trains_live_is_logged(tiny, tmp_path, log, net, overrides, reason):
    cached, live = both_ways(tiny, tmp_path, net, "last_n_blocks", *SIX_STEPS, *overrides)
    check_equal(cached, live)
    assert cached.record.work["cached_phases"] == []
    assert len([line for line in log.messages if f"computes its frozen part anew: {reason}" in line]) == 1


# In float64 what is left of the difference is the order of sums.
@pytest.mark.parametrize("n", [0, 2])
@pytest.mark.parametrize(("net", "size"), [("test_resnet", 32), ("test_vit", 64), ("test_efficientnet", 32)])
def test_in_float64(net, size, n):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (24, 3, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (24,), generator=generator)
    batches = [torch.randperm(24, generator=generator)[:8] for _ in range(100)]
    start = build_model(net, size)
    rule = {"adamw": 1e-3}
    strategy = LastNBlocks(n=n, base_lr=rule) if n else FeatureExtraction(base_lr=rule)
    (phase,) = strategy.plan(start.layout)
    ends = []
    for cached in (False, True):
        model = build_model(net, size).double()
        model.head.dropout.p = 0.0  # its masks would be drawn for other shapes
        model.begin(phase)
        model.train()
        kept = _kept(split(model, phase), images)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
        tail = split(model, phase).tail
        for batch in batches:
            logits = tail(*kept.batch(batch.numpy())) if cached else model(images[batch])
            optimizer.zero_grad()
            functional.cross_entropy(logits, labels[batch]).backward()
            optimizer.step()
        ends.append({name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()})
    assert distance(ends[1], ends[0]) <= 1e-10
    if n == 0:
        assert distance(_by_a_stack(net, size, phase, images, labels, batches), _head(ends[0])) <= 1e-10


@pytest.mark.parametrize("overrides", [[], ["feature_cache.max_bytes=0"]], ids=["store", "memory"])
def test_a_phase_lets_go_of_the_rows_of_those_before(tiny, tmp_path, monkeypatch, overrides):
    made, held = [], []
    init = Activations.__init__

    def counted(self, *arguments):
        made.append(self)
        init(self, *arguments)

    monkeypatch.setattr(Activations, "__init__", counted)
    start = TransferModule.on_train_start

    def looking(module):
        held.append([one._held is not None for one in made])
        return start(module)

    monkeypatch.setattr(TransferModule, "on_train_start", looking)
    cfg = tiny("freeze_strategy=lp_ft", "trainer.max_epochs=4", "feature_cache.hold_max_bytes=100000000", *overrides)
    record = run(cfg, tmp_path)
    assert held == [[True], [False]]
    assert record.work["images_encoded"] > 0
    assert [len(one.table._rows) for one in made if isinstance(one.table, MemoryTable)] == [0] * len(overrides)


def _kept(cut, images):
    columns = columns_of(cut.prefix(images[:2]))
    assert {column.dtype for column in columns} == {torch.float64}
    kept = Activations(
        MemoryTable(row_bytes(columns)),
        columns,
        cut.prefix,
        lambda items: images[torch.from_numpy(items)],
        contextlib.nullcontext,
        torch.device("cpu"),
        Room(0),
    )
    kept.ensure(np.arange(len(images)))
    assert kept.encoded == len(images)
    return kept


def _by_a_stack(net, size, phase, images, labels, batches):
    model = build_model(net, size).double()
    model.begin(phase)
    model.eval()
    kept = _kept(split(model, phase), images)
    head = _head(model.state_dict())
    stack = ProbeStack(
        head["weight"][None],
        head["bias"][None],
        updates.SGD(0.9, nesterov=False),
        weight_decay=[0.0],
        label_smoothing=[0.0],
        clip_norm=[None],
    )
    for batch in batches:
        (features,) = kept.batch(batch.numpy())
        stack.step(features, labels[batch], torch.tensor([0.01], dtype=torch.float64))
    return {"weight": stack.weight[0], "bias": stack.bias[0]}


def _head(state):
    return {name.rpartition(".")[2]: tensor for name, tensor in state.items() if name.startswith("head.")}


def test_each_phase_is_cut_where_the_model_computes(tiny, tmp_path, monkeypatch):
    """Lightning takes it to the CPU after each fit. Here float64 is another device, on which nothing computes."""
    to = nn.Module.to
    monkeypatch.setattr(nn.Module, "to", lambda self, *where, **how: to(self, *where, **how).float())
    monkeypatch.setattr(pl.LightningModule, "cpu", lambda self: self.double())
    record = run(tiny("freeze_strategy=gradual_unfreezing", "trainer.max_epochs=16"), tmp_path)
    assert len(record.work["cached_phases"]) > 2
