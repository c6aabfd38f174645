"""One colour a strategy, in every figure of every report, and a shape for arms that share it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tl_experiments.analysis.arms import CONTROL, Arm

# (on white, on dark): told apart with every common colour blindness, 3:1 against their ground. The first is grey.
PALETTE = (
    ("#6b7280", "#9ca3af"),
    ("#0072b2", "#56b4e9"),
    ("#c2500a", "#ff9248"),
    ("#00805e", "#34c79b"),
    ("#b0457c", "#f08dbb"),
    ("#927000", "#e8c547"),
    ("#4b3fa7", "#a59bff"),
    ("#7a5230", "#cda57d"),
    ("#4d7c0f", "#a6d056"),
    ("#0e7f8c", "#59d3df"),
)
_STRATEGIES = (
    *(CONTROL, "feature_extraction", "full", "last_n_blocks", "lp_ft", "discriminative", "gradual_unfreezing"),
    *("surgical", "norm_only", "bitfit"),
)
SHAPES = 6


@dataclass(frozen=True)
class Style:
    """How an arm is drawn.

    Args:
        colour: Position in ``PALETTE``; None is the colour of the text.
        shape: 0 to ``SHAPES`` - 1: the marker and the dashes of the line.
    """

    colour: int | None = None
    shape: int = 0


def strategy_of(arm: Arm) -> str:
    """The strategy's name without its options: ``last_n_blocks`` of ``last_n_blocks(n=2)``."""
    return arm.freeze_strategy.partition("(")[0]


def styles(arms: Sequence[Arm]) -> dict[Arm, Style]:
    """Arm -> its style, on every dataset the same; arms of one strategy differ in shape, as long as there are shapes.

    Args:
        arms: Of all datasets; an arm of no dataset, ``""``, has a style as well.
    """
    others = sorted({strategy_of(arm) for arm in arms}.difference(_STRATEGIES))
    colours = {name: number for number, name in enumerate(_STRATEGIES)}
    # names that are not ours take the colours after ours, round and round, but never the control's grey
    colours |= {name: 1 + (len(_STRATEGIES) - 1 + number) % (len(PALETTE) - 1) for number, name in enumerate(others)}
    seen: Counter[int] = Counter()
    found = {}
    for arm in sorted({replace(arm, dataset="") for arm in arms}):
        colour = colours[strategy_of(arm)]
        found[arm] = Style(colour, seen[colour] % SHAPES)
        seen[colour] += 1
    return found | {arm: found[replace(arm, dataset="")] for arm in arms}
