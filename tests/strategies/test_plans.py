"""Every plan as a table: what trains is decided without a model."""

from __future__ import annotations

import pytest

from tl_experiments.errors import ConfigError
from tl_experiments.strategies.plans import FeatureExtraction, FromScratch, Full, LastNBlocks, check_plan, frozen_prefix
from tl_experiments.types import Block, ModelLayout, Phase

RULE = {"adamw": 1e-3}
LAYOUT = ModelLayout(
    blocks=(Block("stem", {"stem.w": 8}), Block("b0", {"b0.w": 4, "b0.b": 2}), Block("b1", {"b1.w": 4, "b1.b": 2})),
    head=Block("head", {"head.w": 6, "head.b": 2}),
)
HEAD = {"head.w", "head.b"}
B1 = {"b1.w", "b1.b"}
B0 = {"b0.w", "b0.b"}
ALL = {"stem.w"} | B0 | B1 | HEAD


@pytest.mark.parametrize(
    ("strategy", "trained", "norm_stats", "prefix", "reinitialize"),
    [
        (FeatureExtraction(base_lr=RULE), HEAD, "frozen", 3, False),
        (LastNBlocks(n=0, base_lr=RULE), HEAD, "update", 3, False),
        (LastNBlocks(n=1, base_lr=RULE), B1 | HEAD, "update", 2, False),
        (LastNBlocks(n=2, norm_stats="frozen", base_lr=RULE), B0 | B1 | HEAD, "frozen", 1, False),
        (LastNBlocks(n=3, base_lr=RULE), ALL, "update", 0, False),
        (Full(base_lr=RULE), ALL, "update", 0, False),
        (Full(norm_stats="frozen", base_lr=RULE), ALL, "frozen", 0, False),
        (FromScratch(base_lr=RULE), ALL, "update", 0, True),
    ],
)
def test_single_phase_plans(strategy, trained, norm_stats, prefix, reinitialize):
    (phase,) = strategy.plan(LAYOUT)
    assert set(phase.lr_multiplier) == trained
    assert set(phase.lr_multiplier.values()) == {1.0}
    assert phase.start_fraction == 0
    assert phase.norm_stats == norm_stats
    assert frozen_prefix(phase, LAYOUT) == prefix
    assert strategy.reinitialize_backbone is reinitialize
    check_plan((phase,), LAYOUT)


def test_more_blocks_than_there_are():
    with pytest.raises(ConfigError, match=r"freeze_strategy.n: got 4, expected 0 to 3"):
        LastNBlocks(n=4, base_lr=RULE).plan(LAYOUT)
    with pytest.raises(ConfigError, match=r"got -1, expected 0 or more"):
        LastNBlocks(n=-1, base_lr=RULE)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ((Phase(0, {"head.w": 1, "hed.w": 1}),), r"phase 0: 1 unknown names, e.g. \['hed.w'\]"),
        ((Phase(0, {}),), "phase 0: trains nothing"),
        ((Phase(0, {"head.w": 0.0}),), "rates that are not positive, e.g. of head.w"),
        ((Phase(0.5, {"head.w": 1}),), r"phases start at \[0.5\]"),
        ((Phase(0, {"head.w": 1}), Phase(0, {"b1.w": 1})), r"phases start at \[0, 0\]"),
        ((Phase(0, {"head.w": 1}), Phase(1.0, {"b1.w": 1})), r"phases start at \[0, 1.0\]"),
        ((), r"phases start at \[\]"),
    ],
)
def test_impossible_plans_are_refused(plan, message):
    with pytest.raises(ConfigError, match=message):
        check_plan(plan, LAYOUT)


def test_a_gap_in_the_frozen_blocks_ends_the_prefix():
    phase = Phase(0, {"b0.b": 1.0, "head.w": 1.0})  # as surgical fine-tuning or BitFit would
    assert frozen_prefix(phase, LAYOUT) == 1
