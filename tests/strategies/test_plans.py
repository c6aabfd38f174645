"""Every plan as a table: what trains is decided without a model."""

from __future__ import annotations

import pytest

from tl_experiments.errors import ConfigError
from tl_experiments.strategies.blocks import FeatureExtraction, FromScratch, Full, LastNBlocks, Surgical
from tl_experiments.strategies.kinds import Bitfit, NormOnly
from tl_experiments.strategies.phases import GradualUnfreezing, LpFt
from tl_experiments.strategies.plans import check_plan, frozen_prefix
from tl_experiments.strategies.rates import Discriminative
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


# Six blocks: a stem, three in stage s1, two in stage s2; biases and norms here and there.
DEEP = ModelLayout(
    blocks=(
        Block(
            "stem",
            {"stem.w": 8, "stem.norm.weight": 2, "stem.norm.bias": 2},
            frozenset({"stem.norm.weight", "stem.norm.bias"}),
        ),
        Block("s1.0", {"s1.0.w": 4, "s1.0.bias": 2}),
        Block("s1.1", {"s1.1.w": 4, "s1.1.bias": 2}),
        Block("s1.2", {"s1.2.w": 4}),
        Block("s2.0", {"s2.0.w": 4, "s2.0.norm.weight": 1}, frozenset({"s2.0.norm.weight"})),
        Block("s2.1", {"s2.1.w": 4, "s2.1.unbias": 1}),
    ),
    head=Block("head", {"head.weight": 6, "head.bias": 2}),
)
DEEP_HEAD = {"head.weight", "head.bias"}


def trained(phase: Phase) -> set[str]:
    """Blocks of which all parameters train, the head left out."""
    return {block.name for block in DEEP.blocks if block.parameters.keys() <= phase.lr_multiplier.keys()}


def test_discriminative_rates_fall_with_the_distance_from_the_head():
    (phase,) = Discriminative(decay=0.5, base_lr=RULE).plan(LAYOUT)
    assert phase.lr_multiplier == {
        "head.w": 1,
        "head.b": 1,
        "b1.w": 0.5,
        "b1.b": 0.5,
        "b0.w": 0.25,
        "b0.b": 0.25,
        "stem.w": 0.125,
    }
    assert (phase.start_fraction, phase.norm_stats) == (0, "update")
    (flat,) = Discriminative(decay=1.0, norm_stats="frozen", base_lr=RULE).plan(LAYOUT)
    assert set(flat.lr_multiplier.values()) == {1.0}
    assert flat.norm_stats == "frozen"


def test_gradual_unfreezing_adds_the_deepest_frozen_block_in_each_phase():
    plan = GradualUnfreezing(unfreeze_fraction=0.6, base_lr=RULE).plan(LAYOUT)
    check_plan(plan, LAYOUT)
    assert [phase.start_fraction for phase in plan] == pytest.approx([0, 0.2, 0.4, 0.6])
    assert [set(phase.lr_multiplier) for phase in plan] == [HEAD, HEAD | B1, HEAD | B1 | B0, ALL]
    assert {multiple for phase in plan for multiple in phase.lr_multiplier.values()} == {1.0}
    assert [frozen_prefix(phase, LAYOUT) for phase in plan] == [3, 2, 1, 0]


def test_gradual_unfreezing_with_discriminative_rates():
    plan = GradualUnfreezing(decay=0.5, base_lr=RULE).plan(LAYOUT)
    assert plan[1].lr_multiplier == {"b1.w": 0.5, "b1.b": 0.5, "head.w": 1, "head.b": 1}
    assert plan[3].lr_multiplier["stem.w"] == 0.125
    assert [phase.start_fraction for phase in plan] == pytest.approx([0, 1 / 6, 1 / 3, 1 / 2])


def test_lp_ft_probes_then_trains_everything_at_a_lower_rate():
    plan = LpFt(probe_fraction=0.3, finetune_multiplier=0.01, base_lr=RULE).plan(LAYOUT)
    check_plan(plan, LAYOUT)
    probe, finetune = plan
    assert (probe.start_fraction, probe.norm_stats, probe.lr_multiplier) == (0, "frozen", dict.fromkeys(HEAD, 1.0))
    assert finetune == Phase(0.3, dict.fromkeys(finetune.lr_multiplier, 0.01), "update")
    assert set(finetune.lr_multiplier) == ALL


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (("first",), {"stem", "s1.0"}),
        (("middle",), {"s1.1", "s1.2"}),
        (("last",), {"s2.0", "s2.1"}),
        (("last", "first"), {"stem", "s1.0", "s2.0", "s2.1"}),
        (("s1",), {"s1.0", "s1.1", "s1.2"}),
        (("s1.1",), {"s1.1"}),
        (("0", "5"), {"stem", "s2.1"}),
        (("s2.0", "s2", "4"), {"s2.0", "s2.1"}),
    ],
)
def test_surgical_trains_the_chosen_blocks(blocks, expected):
    (phase,) = Surgical(blocks=blocks, base_lr=RULE).plan(DEEP)
    assert trained(phase) == expected
    assert set(phase.lr_multiplier) == DEEP_HEAD | {
        name for block in DEEP.blocks if block.name in expected for name in block.parameters
    }
    assert set(phase.lr_multiplier.values()) == {1.0}
    check_plan((phase,), DEEP)


@pytest.mark.parametrize("n", range(3, 20))
def test_the_thirds_are_a_partition_of_like_sizes(n):
    layout = ModelLayout(tuple(Block(f"b{i}", {f"b{i}.w": 1}) for i in range(n)), DEEP.head)
    thirds = [
        set(Surgical(blocks=(third,), base_lr=RULE).plan(layout)[0].lr_multiplier) - DEEP_HEAD
        for third in ("first", "middle", "last")
    ]
    assert sorted(name for third in thirds for name in third) == sorted(f"b{i}.w" for i in range(n))
    assert max(map(len, thirds)) - min(map(len, thirds)) <= 1


@pytest.mark.parametrize(
    ("name", "bias"),
    [
        ("backbone.net.blocks.0.attn.q_bias", True),  # BEiT and EVA-02 keep those of query and value apart
        ("backbone.net.blocks.0.attn.v_bias", True),
        ("backbone.net.blocks.0.attn.relative_position_bias_table", False),
        ("backbone.net.blocks.0.attn.attention_biases", False),
    ],
)
def test_bitfit_knows_the_biases_of_attention(name, bias):
    layout = ModelLayout((Block("b0", {"b0.bias": 2, name: 4}),), Block("head", {"head.weight": 4}))
    (phase,) = Bitfit(base_lr=RULE).plan(layout)
    assert (name in phase.lr_multiplier) is bias


def test_bitfit_and_norm_only_train_their_kind_and_the_head():
    (bitfit,) = Bitfit(base_lr=RULE).plan(DEEP)
    assert set(bitfit.lr_multiplier) == DEEP_HEAD | {"stem.norm.bias", "s1.0.bias", "s1.1.bias"}
    assert bitfit.norm_stats == "frozen"
    (norm_only,) = NormOnly(base_lr=RULE).plan(DEEP)
    assert set(norm_only.lr_multiplier) == DEEP_HEAD | {"stem.norm.weight", "stem.norm.bias", "s2.0.norm.weight"}
    assert norm_only.norm_stats == "update"
    for phase in (bitfit, norm_only):
        assert set(phase.lr_multiplier.values()) == {1.0}
        assert frozen_prefix(phase, DEEP) == 0


NO_KIND = ModelLayout((Block("b0", {"b0.w": 4}),), DEEP.head)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Discriminative(decay=0.0, base_lr=RULE), r"^decay: got 0.0, expected \(0, 1\] -> "),
        (lambda: Discriminative(decay=1.1, base_lr=RULE), r"^decay: got 1.1, expected \(0, 1\] -> "),
        (lambda: GradualUnfreezing(decay=-1.0, base_lr=RULE), r"^decay: got -1.0"),
        (
            lambda: GradualUnfreezing(unfreeze_fraction=1.0, base_lr=RULE),
            r"^unfreeze_fraction: got 1.0, expected \(0, 1\)",
        ),
        (lambda: LpFt(probe_fraction=0.0, base_lr=RULE), r"^probe_fraction: got 0.0, expected \(0, 1\) -> "),
        (
            lambda: LpFt(finetune_multiplier=0.0, base_lr=RULE),
            r"^finetune_multiplier: got 0.0, expected a number above 0",
        ),
        (lambda: Surgical(blocks=(), base_lr=RULE), r"^blocks: got \[\], expected at least one block"),
        (
            lambda: Surgical(blocks=("first", "midle"), base_lr=RULE).plan(DEEP),
            r"^freeze_strategy.blocks: got midle, expected first, .* from 0 to 5 -> did you mean middle\?$",
        ),
        (
            lambda: Surgical(blocks=("6",), base_lr=RULE).plan(DEEP),
            r"got 6, .* 0 to 5 -> print_layout=true lists the blocks",
        ),
        (lambda: Surgical(blocks=("-1",), base_lr=RULE).plan(DEEP), r"got -1, .* 0 to 5 -> print_layout=true"),
        (
            lambda: Bitfit(base_lr=RULE).plan(NO_KIND),
            r"^freeze_strategy: bitfit, but the backbone has no biases -> freeze_strategy=norm_only or last_n_blocks$",
        ),
        (
            lambda: NormOnly(base_lr=RULE).plan(NO_KIND),
            r"^freeze_strategy: norm_only, but .* no norms with parameters -> freeze_strategy=bitfit or last_n_blocks$",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(make, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
