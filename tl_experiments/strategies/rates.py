"""Strategies that train each depth at a learning rate of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from tl_experiments.errors import ConfigError
from tl_experiments.types import ModelLayout, NormStats, Phase


def decayed_rates(layout: ModelLayout, decay: float) -> dict[str, float]:
    """Parameter name -> ``decay ** depth_below_head``: 1 for the head, ``decay`` for the deepest block, and so on."""
    return {name: decay**depth for depth, block in enumerate(reversed(layout.all_blocks)) for name in block.parameters}


def check_decay(decay: float) -> None:
    """Refuse a decay outside (0, 1]."""
    if not 0 < decay <= 1:
        raise ConfigError("decay", f"got {decay}, expected (0, 1]", "give the ratio of one block's rate to the next's")


@dataclass(frozen=True, kw_only=True)
class Discriminative:
    """Discriminative learning rates, or layer-wise decay (LLRD): train everything, shallow blocks slower.

    Howard & Ruder (2018), Clark et al. (2020), Bao et al. (BEiT, 2022).

    Args:
        decay: Rate of a block as a share of the rate of the block above it, in (0, 1]; the head has the base rate.
        norm_stats: Whether BatchNorm statistics are updated.
    """

    name: Literal["discriminative"] = "discriminative"
    decay: float
    norm_stats: NormStats = "update"
    base_lr: Mapping[str, float]
    reinitialize_backbone: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_decay(self.decay)

    def plan(self, layout: ModelLayout) -> tuple[Phase, ...]:
        return (Phase(0.0, decayed_rates(layout, self.decay), self.norm_stats),)
