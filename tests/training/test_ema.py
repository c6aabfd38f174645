"""Averaged weights against torch's own average; early stopping; compiled steps."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.training.test_freeze import HeadThenLastBlock
from tl_experiments.training.ema import Ema
from tl_experiments.training.module import TransferModule
from tl_experiments.training.run import run


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(16, 2)
    )


def test_the_average_is_torchs():
    model = net()
    steps = 0

    def warmed_up(averages, current, _n):
        get_ema_multi_avg_fn(min(0.3, (1 + steps) / (10 + steps)))(averages, current, _n)

    reference = AveragedModel(model, multi_avg_fn=warmed_up, use_buffers=True)
    reference.update_parameters(model)  # its first call copies
    ema = Ema(model, model.state_dict(), 0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for steps in range(1, 6):
        optimizer.zero_grad()
        model(torch.randn(8, 3, 4, 4)).square().sum().backward()
        optimizer.step()
        reference.update_parameters(model)
        ema.update(model, steps)
    for name, tensor in reference.module.state_dict().items():
        # torch averages counters too, and rounds them down to 0; here they are copied
        torch.testing.assert_close(
            ema.average[name], tensor if tensor.is_floating_point() else model.state_dict()[name]
        )


def test_showing_and_hiding_changes_nothing():
    model = net()
    ema = Ema(model, ["0.weight", "3.bias"], 0.5)
    with torch.no_grad():
        model[0].weight.add_(1)
    before, average = copy.deepcopy(model.state_dict()), ema.average["0.weight"].clone()
    ema.show(model, False)
    assert torch.equal(model[0].weight, before["0.weight"])
    for _ in range(2):  # the second call finds it shown
        ema.show(model, True)
        assert torch.equal(model[0].weight, average)
    ema.show(model, False)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


def test_val_test_and_checkpoint_use_the_average_and_training_does_not(tiny, tmp_path, monkeypatch):
    """With a decay of 1 the average stays at the start, although the weights themselves move."""
    monkeypatch.setattr(Ema, "update", lambda self, model, steps: None)
    cfg = tiny("freeze_strategy=full", "trainer.max_epochs=3", "trainer.ema_decay=0.999999999")
    ends = {}
    on_train_end = TransferModule.on_train_end

    def note(self):
        ends.update({name: p.detach().clone() for name, p in self.model.named_parameters()})
        on_train_end(self)

    monkeypatch.setattr(TransferModule, "on_train_end", note)
    record = run(cfg, tmp_path / "ema")
    raw = dict(ends)
    run(tiny("freeze_strategy=full", "trainer.max_epochs=3"), tmp_path / "plain")
    assert all(torch.equal(raw[name], ends[name]) for name in raw)  # the average does not touch the training
    kept = load_file(tmp_path / "ema" / "checkpoint.safetensors")
    assert (kept["head.weight"] - raw["head.weight"]).abs().max() > 1e-3
    nlls = _val_nll(tmp_path / "ema")
    assert max(nlls) - min(nlls) < 1e-4
    assert record.metrics["val"]["nll"] == pytest.approx(min(nlls), abs=1e-4)


def _val_nll(folder):
    return [json.loads(line)["val_nll"] for line in (folder / "metrics.jsonl").open()]


def test_early_stopping_ends_the_last_phase_and_says_so(tiny, tmp_path):
    """At a rate of 1e-12 nothing changes, so the start stays the best."""
    cfg = tiny("trainer.max_epochs=10", "optimizer.lr=1e-12", "trainer.early_stopping_patience=2")
    record = run(cfg, tmp_path)
    assert record.best_step == 0
    assert record.last_step == 6
    assert record.notes[-1] == "Stopped early after step 6 of 30: no better val for 2 validations."


def test_early_stopping_never_skips_a_phase(tiny, tmp_path):
    vit = [
        "backbone=timm",
        "backbone.name=test_vit",
        "backbone.preprocessing.image_size=160",
    ]  # no statistics that move
    cfg = tiny(*vit, "trainer.max_epochs=6", "optimizer.lr=1e-12", "trainer.early_stopping_patience=1")
    record = run(dataclasses.replace(cfg, freeze_strategy=HeadThenLastBlock()), tmp_path)
    assert [phase["first_step"] for phase in record.phases] == [0, 9]
    assert record.last_step == 12


@pytest.mark.parametrize("strategy", ["feature_extraction", "two_phases"])
def test_compiled_steps_train_every_phase(tiny, tmp_path, strategy):
    """The freeze audit of each phase fails where a compiled step lost gradients of what was unfrozen."""

    def trained(name, *overrides):
        cfg = tiny("optimizer=sgd", "optimizer.lr=0.01", *overrides)
        if strategy == "two_phases":
            cfg = dataclasses.replace(cfg, freeze_strategy=HeadThenLastBlock(base_lr={"sgd": 0.01}))
        run(cfg, tmp_path / name)
        return load_file(tmp_path / name / "checkpoint.safetensors")

    plain, compiled = trained("plain"), trained("compiled", "trainer.compile_backend=aot_eager")
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], rtol=1e-4, atol=1e-5)


def test_a_short_run_does_not_evaluate_its_start(tiny, tmp_path):
    """A decay of 0.999 would keep nine tenths of the start after a hundred steps."""
    overrides = ["freeze_strategy=full", "dataset.shots=20", "trainer.max_epochs=4", "trainer.batch_size=16"]
    averaged = run(tiny(*overrides, "trainer.ema_decay=0.999"), tmp_path / "ema")
    plain = run(tiny(*overrides), tmp_path / "plain")
    assert averaged.metrics["val"]["nll"] < 2.2
    assert plain.metrics["val"]["nll"] < 2.2
