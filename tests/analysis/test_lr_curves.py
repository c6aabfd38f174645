"""What curves suggest, on curves whose answer is known, and the files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.signal import lfilter

from tl_experiments.analysis.lr_curves import by_strategy, smooth, suggest, table, write_curves
from tl_experiments.records import LrCurve


def curve(strategy="full", centre=1e-3, seed=0, backbone="resnet18", optimizer="adamw", phase=0):
    """A loss that falls around ``centre`` as a logistic function of log rate, and blows up two decades later."""
    rates = np.geomspace(1e-6, 1, 200)
    losses = 2 - 1.5 / (1 + np.exp(-4 * np.log10(rates / centre))) + (rates / centre / 100) ** 2
    arm = {"dataset": "digits", "backbone": backbone, "head": "linear", "freeze_strategy": strategy}
    return LrCurve(
        arm=arm, seed=seed, optimizer=optimizer, rule=3e-4, phase=phase,
        config={"optimizer": {"name": optimizer, "lr_factor": 1.0}, "seed": seed},
        learning_rates=tuple(rates), losses=tuple(losses), environment={},
    )  # fmt: skip


def test_smoothing_is_an_average_without_bias():
    assert smooth([2.0] * 30) == pytest.approx([2.0] * 30)
    losses = np.random.default_rng(0).normal(size=50)
    biased = lfilter([0.1], [1, -0.9], losses)
    assert smooth(losses) == pytest.approx(biased / (1 - 0.9 ** np.arange(1, 51)))


@pytest.mark.parametrize("centre", [1e-4, 1e-3, 1e-2])
def test_the_steepest_point_and_the_minimum_are_found(centre):
    (found,) = suggest([curve(centre=centre)])
    assert centre <= found.steepest <= 3 * centre  # an average lags behind
    assert 3 * centre < found.minimum < 100 * centre


def test_seeds_of_a_strategy_are_one_suggestion():
    found = suggest([curve(seed=seed, centre=c) for seed, c in enumerate((1e-3, 1e-3, 1e-1))] + [curve("bitfit")])
    assert [one.strategy for one in found] == ["full", "bitfit"]
    assert found[0].steepest < 1e-2  # the median of three


def test_labels_hold_what_differs_within_a_strategy():
    assert list(by_strategy([curve(), curve("from_scratch", backbone="other")])) == ["full", "from_scratch"]
    assert list(by_strategy([curve(), curve(backbone="vit")])) == ["full, backbone=resnet18", "full, backbone=vit"]
    assert list(by_strategy([curve(), curve(optimizer="sgd")])) == ["full, optimizer=adamw", "full, optimizer=sgd"]
    assert list(by_strategy([curve(), curve(phase=1)])) == ["full, phase=0", "full, phase=1"]


def test_files_hold_every_step(tmp_path):
    data, picture = write_curves([curve(), curve("bitfit")], tmp_path)
    content = json.loads(data.read_text())
    assert len(content["curves"]) == 2
    assert content["curves"][0]["losses"] == list(curve().losses)
    assert [one["strategy"] for one in content["suggestions"]] == ["full", "bitfit"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    lines = table([curve(), curve("bitfit")]).splitlines()
    assert [line.split()[0] for line in lines] == ["strategy", "full", "bitfit"]


def test_a_curve_of_a_few_steps_is_no_error():
    short = curve()
    few = LrCurve(**{**vars(short), "learning_rates": short.learning_rates[:3], "losses": short.losses[:3]})
    assert suggest([few])[0].steepest == few.learning_rates[0]
