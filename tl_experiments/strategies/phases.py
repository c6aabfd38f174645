"""Strategies that unfreeze as training goes on: several phases, each with a fresh optimizer and schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from tl_experiments.errors import ConfigError
from tl_experiments.strategies.rates import check_decay, decayed_rates
from tl_experiments.types import ModelLayout, NormStats, Phase


@dataclass(frozen=True, kw_only=True)
class GradualUnfreezing:
    """ULMFiT: the head alone, then one more block a phase, the deepest first (Howard & Ruder, 2018).

    Args:
        unfreeze_fraction: Share of the run's steps, in (0, 1), over which the unfreezing is spread evenly; the rest of
            the run trains everything.
        decay: Rate of a block as a share of the rate of the block above it, in (0, 1]; 1 is one rate for all.
        norm_stats: Whether BatchNorm statistics in the trained blocks are updated.
    """

    name: Literal["gradual_unfreezing"] = "gradual_unfreezing"
    unfreeze_fraction: float = 0.5
    decay: float = 1.0
    norm_stats: NormStats = "update"
    base_lr: Mapping[str, float]
    reinitialize_backbone: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_fraction("unfreeze_fraction", self.unfreeze_fraction)
        check_decay(self.decay)

    def plan(self, layout: ModelLayout) -> tuple[Phase, ...]:
        rates, n = decayed_rates(layout, self.decay), len(layout.blocks)
        return tuple(
            Phase(
                self.unfreeze_fraction * thawed / n,
                {name: rates[name] for block in layout.all_blocks[n - thawed :] for name in block.parameters},
                self.norm_stats,
            )
            for thawed in range(n + 1)
        )


@dataclass(frozen=True, kw_only=True)
class LpFt:
    """LP-FT: a linear probe, then full fine-tuning from it at a lower rate (Kumar et al., 2022).

    Args:
        probe_fraction: Share of the run's steps that trains the head alone, in (0, 1).
        finetune_multiplier: Rate of the fine-tuning, head included, as a multiple of the probe's; above 0.
        norm_stats: Whether BatchNorm statistics are updated while everything trains.
    """

    name: Literal["lp_ft"] = "lp_ft"
    probe_fraction: float = 0.5
    finetune_multiplier: float = 0.1
    norm_stats: NormStats = "update"
    base_lr: Mapping[str, float]
    reinitialize_backbone: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_fraction("probe_fraction", self.probe_fraction)
        if not self.finetune_multiplier > 0:
            raise ConfigError(
                "finetune_multiplier", f"got {self.finetune_multiplier}, expected a number above 0", "0.1 is usual"
            )

    def plan(self, layout: ModelLayout) -> tuple[Phase, ...]:
        return (
            Phase(0.0, dict.fromkeys(layout.head.parameters, 1.0), "frozen"),
            Phase(
                self.probe_fraction,
                {name: self.finetune_multiplier for block in layout.all_blocks for name in block.parameters},
                self.norm_stats,
            ),
        )


def _check_fraction(key: str, fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ConfigError(key, f"got {fraction}, expected (0, 1)", "give a share of the run's steps")
