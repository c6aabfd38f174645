"""The freeze strategies. Each is its own config: a choice of ``conf/freeze_strategy/`` and a pure ``plan``.

``base_lr`` is the strategy's learning-rate rule: optimizer name -> base learning rate that is used when
``optimizer.lr`` is null. One rate for all strategies would be no comparison: a probe's good rates and those of
full fine-tuning lie up to 100x apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from tl_experiments.errors import ConfigError
from tl_experiments.types import Block, ModelLayout, NormStats, Phase


def one_phase(blocks: Iterable[Block], norm_stats: NormStats) -> tuple[Phase, ...]:
    """A single phase that trains ``blocks`` at the base learning rate."""
    return (Phase(0.0, {name: 1.0 for block in blocks for name in block.parameters}, norm_stats),)


@dataclass(frozen=True, kw_only=True)
class FeatureExtraction:
    """Linear probing: train the head on the features of a frozen backbone."""

    name: Literal["feature_extraction"] = "feature_extraction"
    base_lr: Mapping[str, float]
    reinitialize_backbone: ClassVar[bool] = False

    def plan(self, layout: ModelLayout) -> tuple[Phase, ...]:
        return one_phase((layout.head,), "frozen")


@dataclass(frozen=True, kw_only=True)
class LastNBlocks:
    """Partial fine-tuning: train the head and the ``n`` deepest blocks at one learning rate (Yosinski et al., 2014).

    Args:
        n: Blocks to train, 0 (a linear probe) to all of them; ``print_layout=true`` lists them.
        norm_stats: Whether BatchNorm statistics in the trained blocks are updated.
    """

    name: Literal["last_n_blocks"] = "last_n_blocks"
    n: int
    norm_stats: NormStats = "update"
    base_lr: Mapping[str, float]
    reinitialize_backbone: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ConfigError("n", f"got {self.n}, expected 0 or more", "give the number of deepest blocks to train")

    def plan(self, layout: ModelLayout) -> tuple[Phase, ...]:
        frozen = len(layout.blocks) - self.n  # not blocks[-n:], which trains everything at n=0
        if frozen < 0:
            raise ConfigError(
                "freeze_strategy.n",
                f"got {self.n}, expected 0 to {len(layout.blocks)}, the backbone's blocks",
                "print_layout=true lists the blocks",
            )
        return one_phase((*layout.blocks[frozen:], layout.head), self.norm_stats)


@dataclass(frozen=True, kw_only=True)
class Full:
    """Full fine-tuning: train every parameter, starting from the given weights, at one learning rate.

    Args:
        norm_stats: Whether BatchNorm statistics are updated.
    """

    name: Literal["full"] = "full"
    norm_stats: NormStats = "update"
    base_lr: Mapping[str, float]
    reinitialize_backbone: ClassVar[bool] = False

    def plan(self, layout: ModelLayout) -> tuple[Phase, ...]:
        return one_phase(layout.all_blocks, self.norm_stats)


@dataclass(frozen=True, kw_only=True)
class FromScratch:
    """The control arm of transfer: the same as ``full``, after re-initialising the backbone."""

    name: Literal["from_scratch"] = "from_scratch"
    base_lr: Mapping[str, float]
    reinitialize_backbone: ClassVar[bool] = True

    def plan(self, layout: ModelLayout) -> tuple[Phase, ...]:
        return one_phase(layout.all_blocks, "update")


Strategy = FeatureExtraction | LastNBlocks | Full | FromScratch


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
