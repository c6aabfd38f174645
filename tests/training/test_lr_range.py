"""The range test trains what its phase trains, at the rates it says, and stops when the loss blows up."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.conftest import TINY
from tests.training.test_freeze import rates_of_each_step
from tl_experiments.config import compose
from tl_experiments.errors import ConfigError
from tl_experiments.training.build import build
from tl_experiments.training.lr_range import range_test


def config(*overrides):
    return compose([*TINY, "lr_range.steps=20", *overrides], verb="lr")


def test_rates_rise_exponentially_and_losses_are_those_of_a_plain_loop():
    """Against torch's own optimizer on the same model and batches."""
    cfg = config("freeze_strategy=full", "lr_range.min_lr=1e-5", "lr_range.max_lr=1e-3", "optimizer=sgd")
    with rates_of_each_step() as seen:
        curve = range_test(cfg)
    assert curve.learning_rates == pytest.approx(np.geomspace(1e-5, 1e-3, 20))
    assert [rates[0] for rates in seen] == pytest.approx(list(curve.learning_rates))

    parts = build(cfg)
    parts.model.begin(parts.phases[0].phase)
    parts.model.train()
    decayed = [p for p in parts.model.parameters() if p.ndim > 1]
    others = [p for p in parts.model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9, weight_decay=1e-4)
    losses = []
    for rate, batch in zip(np.geomspace(1e-5, 1e-3, 20), parts.data.train_batches(0, 20), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = torch.nn.functional.cross_entropy(parts.model(batch["image"]), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parts.model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert curve.losses == pytest.approx(losses, rel=1e-5)


def test_it_ends_where_the_loss_blows_up():
    curve = range_test(config("freeze_strategy=full", "optimizer=sgd", "lr_range.max_lr=1e6", "lr_range.steps=60"))
    assert len(curve.losses) < 60
    assert np.isfinite(curve.losses).all()


def test_the_rule_is_that_of_a_run():
    curve = range_test(config("freeze_strategy=full", "lr_range.steps=10"))
    assert curve.rule == compose(["freeze_strategy=full"]).base_lr()
    assert (curve.optimizer, curve.phase) == ("adamw", 0)
    assert curve.arm["freeze_strategy"] == "full"


@pytest.mark.parametrize(
    ("override", "message"),
    [("lr_range.max_lr=1e-9", "above min_lr"), ("lr_range.steps=2", "10 or more"), ("lr_range.phase=2", "first, last")],
)
def test_ranges_are_checked(override, message):
    with pytest.raises(ConfigError, match=message):
        config(override)


def test_a_train_config_has_no_range():
    assert "lr_range" not in {field.name for field in dataclasses.fields(compose([]))}
    with pytest.raises(ConfigError, match=r"lr_range"):
        compose(["lr_range.steps=20"])
