"""The freeze strategies, and what every plan must keep to. Each strategy is its own config: a choice of
``conf/freeze_strategy/`` and a pure ``plan``.

``base_lr`` is the strategy's learning-rate rule: optimizer name -> base learning rate that is used when
``optimizer.lr`` is null. One rate for all strategies would be no comparison: a probe's good rates and those of
full fine-tuning lie up to 100x apart.
"""

from __future__ import annotations

from tl_experiments.errors import ConfigError
from tl_experiments.strategies.blocks import FeatureExtraction, FromScratch, Full, LastNBlocks, Surgical
from tl_experiments.strategies.kinds import Bitfit, NormOnly
from tl_experiments.strategies.phases import GradualUnfreezing, LpFt
from tl_experiments.strategies.rates import Discriminative
from tl_experiments.types import Block, ModelLayout, Phase

Strategy = (
    FeatureExtraction
    | LastNBlocks
    | Full
    | FromScratch
    | Discriminative
    | GradualUnfreezing
    | LpFt
    | Surgical
    | Bitfit
    | NormOnly
)


def _any_net() -> ModelLayout:
    names = [f"block{number}" for number in range(64)]
    blocks = [
        Block(one, dict.fromkeys((f"{one}.weight", f"{one}.bias", f"{one}.norm"), 1), norms=frozenset({f"{one}.norm"}))
        for one in names
    ]
    return ModelLayout(tuple(blocks), Block("head", {"head.weight": 1, "head.bias": 1}))


# As deep as nets are, so that a strategy's plan for it has the shape of its plans for others
ANY_NET = _any_net()


def trains_head_only(strategy: Strategy) -> bool:
    """Whether every phase of the strategy's plan trains the head alone, for a net that stands for any."""
    try:
        plan = strategy.plan(ANY_NET)
    except ConfigError:  # it names blocks of its own
        return False
    return all(phase.lr_multiplier.keys() <= ANY_NET.head.parameters.keys() for phase in plan)


def frozen_prefix(phase: Phase, layout: ModelLayout) -> int:
    """Number of leading blocks that ``phase`` does not train."""
    for index, block in enumerate(layout.blocks):
        if phase.lr_multiplier.keys() & block.parameters.keys():
            return index
    return len(layout.blocks)


def check_plan(plan: tuple[Phase, ...], layout: ModelLayout) -> None:
    """Refuse a plan that the layout cannot carry out.

    Raises:
        ConfigError: A name that the layout does not know, a phase that trains nothing, a rate that is not positive, or
            phases that do not start at 0 and go forward.
    """
    known = layout.names()
    for number, phase in enumerate(plan):
        where = f"freeze_strategy, phase {number}"
        if unknown := sorted(phase.lr_multiplier.keys() - known):
            raise ConfigError(
                where, f"{len(unknown)} unknown names, e.g. {unknown[:3]}", "print_layout=true lists the parameters"
            )
        if not phase.lr_multiplier:
            raise ConfigError(where, "trains nothing", "freeze_strategy=feature_extraction trains the head alone")
        if bad := [name for name, multiple in phase.lr_multiplier.items() if not multiple > 0]:
            raise ConfigError(where, f"rates that are not positive, e.g. of {bad[0]}", "leave frozen parameters out")
    starts = [phase.start_fraction for phase in plan]
    if not plan or starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= 1:
        raise ConfigError(
            "freeze_strategy", f"phases start at {starts}", "start at 0 and go forward, each start below 1"
        )
