"""Every option of optimizer, scheduler, objective and trainer reaches the training, against torch's own."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from timm.optim import create_optimizer_v2
from torch.nn import functional

from tl_experiments.config.optimization import SGD, AdamW, Cosine, Timm
from tl_experiments.errors import ConfigError
from tl_experiments.training.build import build
from tl_experiments.training.history import History
from tl_experiments.training.optimization import build_optimizer, restore_optimizer, schedule
from tl_experiments.training.run import run


def groups():
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(3, 3, generator=generator))
    return parameter, [{"params": [parameter], "lr": 0.1, "weight_decay": 0.03}]


OPTIONS = {"lr": None, "lr_factor": 1.0, "weight_decay": 0.5}  # the groups' own decay counts, not the config's


@pytest.mark.parametrize(
    ("cfg", "reference"),
    [
        (
            AdamW(name="adamw", betas=(0.7, 0.9), **OPTIONS),
            lambda p: torch.optim.AdamW([p], lr=0.1, weight_decay=0.03, betas=(0.7, 0.9)),
        ),
        (
            SGD(name="sgd", momentum=0.8, nesterov=False, **OPTIONS),
            lambda p: torch.optim.SGD([p], lr=0.1, weight_decay=0.03, momentum=0.8),
        ),
        (
            SGD(name="sgd", momentum=0.8, nesterov=True, **OPTIONS),
            lambda p: torch.optim.SGD([p], lr=0.1, weight_decay=0.03, momentum=0.8, nesterov=True),
        ),
    ],
    ids=["adamw", "sgd", "nesterov"],
)
def test_optimizers_are_torchs(cfg, reference):
    (ours, ours_groups), (theirs, _) = groups(), groups()
    optimizers = build_optimizer(cfg, ours_groups), reference(theirs)
    for _ in range(4):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            parameter.pow(3).sum().backward()
            optimizer.step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("wrote", [True, False], ids=["fused", "not fused"])
@pytest.mark.parametrize("kind", [AdamW, SGD], ids=lambda kind: kind.__name__)
def test_a_state_from_another_device_changes_no_kernel(kind, wrote):
    """What a GPU wrote goes on here as if it had been written here."""
    own = (
        {"name": "adamw", "betas": (0.9, 0.999)}
        if kind is AdamW
        else {"name": "sgd", "momentum": 0.9, "nesterov": False}
    )
    cfg = kind(**own, **OPTIONS)
    (whole, whole_groups), (first, first_groups), (second, second_groups) = groups(), groups(), groups()

    def steps(parameter, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            parameter.pow(3).sum().backward()
            optimizer.step()

    steps(whole, build_optimizer(cfg, whole_groups), 5)
    before = build_optimizer(cfg, first_groups)
    steps(first, before, 3)
    state = before.state_dict()
    for group in state["param_groups"]:
        group["fused"] = wrote
    after = build_optimizer(cfg, second_groups)
    restore_optimizer(after, state)
    second.data.copy_(first)
    steps(second, after, 2)
    assert torch.equal(second, whole)
    assert all(group["fused"] is None for group in after.param_groups)


@pytest.mark.parametrize("algorithm", ["lamb", "lion", "nadamw", "adafactor", "adopt"])
def test_timm_optimizers_are_timms(algorithm):
    """Each group keeps its own rate and decay."""
    (ours, ours_groups), (theirs, _) = groups(), groups()
    cfg = Timm(name="timm", algorithm=algorithm, kwargs={"eps": 1e-6} if algorithm == "lamb" else {}, **OPTIONS)
    reference = create_optimizer_v2([theirs], algorithm, lr=0.1, weight_decay=0.03, **cfg.kwargs)
    for parameter, optimizer in ((ours, build_optimizer(cfg, ours_groups)), (theirs, reference)):
        for _ in range(4):
            optimizer.zero_grad()
            parameter.pow(3).sum().backward()
            optimizer.step()
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, groups()[0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.algorithm=lam"], "timm has no optimizer 'lam' -> did you mean lamb"),
        (["optimizer.algorithm=lamb", "optimizer.kwargs.epsilon=1"], "cannot make lamb of these options .*epsilon"),
        (["optimizer.algorithm=adahessian"], "adahessian needs second derivatives"),
    ],
)
def test_what_timm_refuses_is_one_line(tiny, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        run(tiny("optimizer=timm", "optimizer.lr=0.1", *overrides), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()  # told before any training


def test_a_timm_optimizer_takes_the_rule_of_its_own_name_or_none(tiny):
    by_rule = tiny("optimizer=timm", "optimizer.algorithm=adamw")
    assert by_rule.base_lr() == tiny().base_lr()
    with pytest.raises(ConfigError, match=r"feature_extraction has no rule for lamb -> give optimizer\.lr"):
        tiny("optimizer=timm", "optimizer.algorithm=lamb")


def test_after_the_warmup_the_cosine_is_torchs():
    multiplier = schedule(Cosine(name="cosine", warmup_fraction=0.4, final_fraction=0.0), 10)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)
    for step in range(4, 10):
        assert multiplier(step) == pytest.approx(reference.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_label_smoothing_is_torchs(tiny, smoothing):
    parts = build(tiny(f"objective.label_smoothing={smoothing}"))
    batch = next(iter(parts.data.eval_loader("val")))
    parts.model.eval()
    expected = functional.cross_entropy(parts.model(batch["image"]), batch["label"], label_smoothing=smoothing)
    assert torch.equal(parts.objective.loss(parts.model.logits, batch), expected)


def test_the_gradient_is_clipped_to_its_norm(tiny, tmp_path):
    """One SGD step without momentum moves the weights by exactly ``lr * clip``."""
    overrides = ["optimizer=sgd", "optimizer.lr=0.5", "optimizer.momentum=0", "optimizer.weight_decay=0"]
    overrides += ["scheduler=constant", "trainer.batch_size=100", "trainer.max_epochs=1"]
    cfg = tiny(*overrides, "trainer.gradient_clip_norm=0.01")
    before = {name: tensor.clone() for name, tensor in build(cfg).model.state_dict().items()}
    run(cfg, tmp_path)
    after = load_file(tmp_path / "checkpoint.safetensors")
    moved = torch.cat([(after[name] - before[name]).flatten() for name in ("head.weight", "head.bias")])
    assert moved.norm().item() == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_sgd_with_a_long_warmup_passes_the_audit(tiny, tmp_path):
    """Steps smaller than the spacing of float32 leave a weight where it is: no fault of the freezing."""
    run(tiny("freeze_strategy=full", "optimizer=sgd", "optimizer.lr=1e-8", "trainer.max_epochs=5"), tmp_path)


def test_weights_and_test_metrics_are_those_that_val_chose(tiny, tmp_path, monkeypatch):
    """Whatever training did after the best validation does not show."""
    cfg = tiny("freeze_strategy=full", "optimizer.lr=0.01")
    last = run(cfg, tmp_path / "last_counts")
    monkeypatch.setattr(History, "_is_better", lambda self, metrics: not self.best)  # the start is the best
    start = run(cfg, tmp_path / "start_counts")
    initial = build(cfg).model.state_dict()
    kept = load_file(tmp_path / "start_counts" / "checkpoint.safetensors")
    assert start.best_step == 0
    assert all(torch.equal(kept[name], initial[name]) for name in kept)
    assert start.metrics["test"] != last.metrics["test"]
    untrained = dataclasses.replace(cfg, optimizer=dataclasses.replace(cfg.optimizer, lr=1e-30))
    assert start.metrics["test"]["nll"] == pytest.approx(run(untrained, tmp_path / "untrained").metrics["test"]["nll"])


@pytest.mark.parametrize("strategy", ["gradual_unfreezing", "full"])
def test_an_optimizer_that_only_looks_around_in_its_first_step_passes_the_audit(tiny, tmp_path, strategy):
    overrides = ["optimizer=timm", "optimizer.algorithm=adopt", "optimizer.lr=0.001"]
    run(tiny(*overrides, f"freeze_strategy={strategy}", "trainer.max_epochs=4"), tmp_path)


def test_the_rate_on_file_is_the_one_that_was_used(tiny, tmp_path):
    """The second phase of LP-FT trains at a tenth of the base rate."""
    cfg = tiny("freeze_strategy=lp_ft", "scheduler=constant", "trainer.max_epochs=4")
    run(cfg, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    rates = [line["learning_rate"] for line in lines if line["learning_rate"] is not None]
    assert rates == pytest.approx([cfg.base_lr()] * 2 + [0.1 * cfg.base_lr()] * 2)
