"""Steps, schedules and the choice of weights, as tables and against torch's own."""

from __future__ import annotations

import dataclasses
import re
import time
from functools import partial
from itertools import pairwise

import pytest
import torch

from tests.training.test_freeze import HeadThenLastBlock, rates_of_each_step, train
from tl_experiments.config import compose
from tl_experiments.config.compose import conf_dir
from tl_experiments.config.optimization import Constant, Cosine, OneCycle, WarmRestarts
from tl_experiments.errors import ConfigError
from tl_experiments.training.build import build
from tl_experiments.training.history import History
from tl_experiments.training.metrics import Predictions
from tl_experiments.training.optimization import schedule
from tl_experiments.training.phases import PhaseSteps, phase_steps
from tl_experiments.types import Phase


def plan(*starts):
    return [Phase(start, {"head.weight": 1.0}) for start in starts]


@pytest.mark.parametrize(
    ("starts", "steps_per_epoch", "epochs", "chunks"),
    [
        ((0,), 3, 2, [((0, 3), (3, 6))]),
        ((0, 0.5), 3, 2, [((0, 3),), ((3, 6),)]),
        ((0, 0.4), 5, 2, [((0, 4),), ((4, 5), (5, 10))]),
        ((0, 0.25, 0.75), 2, 2, [((0, 1),), ((1, 2), (2, 3)), ((3, 4),)]),
        ((0, 0.99), 3, 1, [((0, 2),), ((2, 3),)]),
        # 12 phases over 10 steps: two have no step of their own, and the last one keeps its place
        (tuple(i / 12 for i in range(12)), 1, 10, None),
    ],
)
def test_phases_are_laid_over_steps(starts, steps_per_epoch, epochs, chunks):
    phases = phase_steps(plan(*starts), steps_per_epoch, epochs)
    flat = [chunk for phase in phases for chunk in phase.chunks]
    assert flat[0][0] == 0
    assert flat[-1][1] == steps_per_epoch * epochs
    assert all(first[1] == second[0] for first, second in pairwise(flat))
    assert all(start // steps_per_epoch == (end - 1) // steps_per_epoch for start, end in flat)
    assert [phase.last for phase in phases] == [False] * (len(phases) - 1) + [True]
    assert [phase.number for phase in phases] == list(range(len(phases)))
    if chunks is not None:
        assert [phase.chunks for phase in phases] == chunks


def test_cosine_is_torchs_cosine():
    multiplier = schedule(Cosine(name="cosine", warmup_fraction=0.0, final_fraction=0.1), 20)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.1)
    for step in range(20):
        assert multiplier(step) == pytest.approx(reference.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("steps", [7, 10, 40])
def test_one_cycle_is_torchs(steps):
    multiplier = schedule(
        OneCycle(name="one_cycle", warmup_fraction=0.3, initial_fraction=0.04, final_fraction=0.001), steps
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=1.0,
        total_steps=steps,
        pct_start=0.3,
        div_factor=25,
        final_div_factor=40,
        cycle_momentum=False,
    )
    for step in range(steps):
        assert multiplier(step) == pytest.approx(reference.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        if step < steps - 1:
            reference.step()


@pytest.mark.parametrize(("cycles", "longer", "first"), [(3, 1.0, 7), (3, 2.0, 3)])
def test_warm_restarts_are_torchs(cycles, longer, first):
    multiplier = schedule(
        WarmRestarts(name="warm_restarts", cycles=cycles, cycle_multiplier=longer, final_fraction=0.1), 21
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        optimizer, T_0=first, T_mult=int(longer), eta_min=0.1
    )
    for step in range(21):
        assert multiplier(step) == pytest.approx(reference.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("name", sorted(path.stem for path in (conf_dir() / "scheduler").glob("*.yaml")))
def test_no_schedule_wastes_a_step(name, steps):
    """A rate of 0 would be a step thrown away; above 1 it would exceed the base rate."""
    multiplier = schedule(compose([f"scheduler={name}"]).scheduler, steps)
    rates = [multiplier(step) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)


def test_warmup_rises_linearly_and_never_starts_at_zero():
    cosine = schedule(Cosine(name="cosine", warmup_fraction=0.4, final_fraction=0.0), 10)
    assert [cosine(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert cosine(9) > 0
    constant = schedule(Constant(name="constant", warmup_fraction=0.2), 10)
    assert [constant(step) for step in range(10)] == pytest.approx([1 / 3, 2 / 3] + [1.0] * 8)


def test_each_phase_has_a_schedule_and_momentum_of_its_own(tiny, tmp_path):
    cfg = tiny("scheduler.warmup_fraction=0", "trainer.max_epochs=4")
    cfg = dataclasses.replace(cfg, freeze_strategy=HeadThenLastBlock())
    with rates_of_each_step() as seen:
        _, parts, trainer, module = train(cfg, tmp_path)
    assert module.phase.steps == parts.phases[1].steps == trainer.global_step
    assert {state["step"].item() for state in trainer.optimizers[0].state.values()} == {float(module.phase.steps)}
    expected = []
    for phase in parts.phases:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=parts.lr)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=phase.steps)
        for _ in range(phase.steps):
            rate = optimizer.param_groups[0]["lr"]
            expected.append(sorted({rate * multiple for multiple in phase.phase.lr_multiplier.values()}))
            optimizer.step()
            cosine.step()
    assert len(seen) == len(expected)
    for ours, theirs in zip(seen, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)


def test_phases_without_a_step_are_said(tiny):
    """Unfrozen over half of 3 steps."""
    cfg = tiny("freeze_strategy=gradual_unfreezing", "trainer.max_epochs=2")
    (note,) = build(cfg).notes
    assert re.fullmatch(r"\d+ of the \d+ phases got no optimizer step of their own and were left out: .*", note)
    assert build(tiny("freeze_strategy=gradual_unfreezing", "trainer.max_epochs=20")).notes == ()


def test_a_strategy_without_its_phases_is_refused(tiny):
    """LP-FT in a single step would be full fine-tuning under another name."""
    with pytest.raises(ConfigError, match=r"max_epochs: 1, which is 1 steps: too few for the 2 phases of lp_ft"):
        build(tiny("freeze_strategy=lp_ft", "trainer.max_epochs=1", "trainer.batch_size=100"))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(1, 2)


def predictions(accuracy, confidence=2.0):
    label = torch.zeros(100, dtype=torch.long)
    right = torch.arange(100) < round(100 * accuracy)
    logits = torch.where(right, confidence, -confidence)
    return Predictions(torch.arange(100), label, torch.stack([logits, torch.zeros(100)], 1))


@pytest.mark.parametrize(
    ("validations", "best_step"),
    [
        ([(0, 1, 0.9, 2.0), (1, 1, 0.8, 2.0)], 0),  # the start of the last phase may be the best
        ([(0, 0, 0.99, 2.0), (1, 1, 0.8, 2.0), (2, 1, 0.85, 2.0)], 2),  # an earlier phase is never chosen
        ([(0, 1, 0.9, 2.0), (1, 1, 0.9, 2.2), (2, 1, 0.9, 1.0)], 1),  # at equal accuracy the lower NLL
        ([(0, 1, 0.9, 2.0), (1, 1, 0.9, 2.0)], 0),  # and at equal both the earlier
    ],
)
def test_the_best_weights_come_back(validations, best_step, tmp_path):
    model, history = Model(), History(tmp_path, steps_per_epoch=1, started=time.perf_counter())
    for step, number, accuracy, confidence in validations:
        with torch.no_grad():
            model.head.weight.fill_(step)
        phase = PhaseSteps(number, Phase(0, {"head.weight": 1.0}), ((0, 9),), last=number == 1)
        weights = partial(phase.weights, model)
        history.enter(phase, step, predictions(accuracy, confidence), weights, None, time.perf_counter())
    history.restore_best(model)
    assert history.best_step == best_step
    assert model.head.weight.unique().item() == best_step
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(validations)


@pytest.mark.parametrize(
    ("accuracies", "rising"),
    [([0.1, 0.5, 0.6, 0.7, 0.8], True), ([0.1, 0.5, 0.8, 0.7, 0.8], False), ([0.5], False)],
)
def test_still_rising_looks_at_the_last_quarter(accuracies, rising, tmp_path):
    history = History(tmp_path, steps_per_epoch=1, started=time.perf_counter())
    phase = PhaseSteps(0, Phase(0, {"head.weight": 1.0}), ((0, 9),), last=True)
    for step, accuracy in enumerate(accuracies):
        history.enter(phase, step, predictions(accuracy), dict, 0.5, time.perf_counter())
    assert history.still_rising() is rising
