"""Choices of the groups ``optimizer``, ``scheduler`` and ``objective``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tl_experiments.config.ranges import require


@dataclass(frozen=True, kw_only=True)
class _OptimizerOptions:
    """What every optimizer has.

    Args:
        lr: Base learning rate; null takes the freeze strategy's own rule.
        lr_factor: Multiplies the strategy's rule; swept, it tunes every arm with an equal budget.
        weight_decay: On weights of two dimensions or more; norms and biases are not decayed.
    """

    lr: float | None
    lr_factor: float
    weight_decay: float

    def __post_init__(self) -> None:
        require(self.lr is None or self.lr > 0, "lr", self.lr, "a number above 0, or null for the strategy's rule")
        require(self.lr_factor > 0, "lr_factor", self.lr_factor, "a number above 0")
        require(
            self.lr is None or self.lr_factor == 1,
            "lr_factor",
            f"{self.lr_factor} together with lr {self.lr}",
            "one of the two: lr is taken literally",
        )
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")


@dataclass(frozen=True, kw_only=True)
class AdamW(_OptimizerOptions):
    """AdamW (Loshchilov & Hutter, 2019)."""

    name: Literal["adamw"]
    betas: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(ok, "betas", list(self.betas), "2 numbers in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class SGD(_OptimizerOptions):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"]
    momentum: float
    nesterov: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.momentum < 1, "momentum", self.momentum, "[0, 1)")
        require(self.momentum > 0 or not self.nesterov, "nesterov", True, "false where momentum is 0")


Optimizer = AdamW | SGD


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Linear warm-up, then a half cosine down to ``final_fraction`` of the rate, within each phase.

    Args:
        warmup_fraction: Share of the phase's steps, in [0, 1).
        final_fraction: Rate at the end as a share of the base rate, in [0, 1].
    """

    name: Literal["cosine"]
    warmup_fraction: float
    final_fraction: float

    def __post_init__(self) -> None:
        require(0 <= self.warmup_fraction < 1, "warmup_fraction", self.warmup_fraction, "[0, 1)")
        require(0 <= self.final_fraction <= 1, "final_fraction", self.final_fraction, "[0, 1]")


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Linear warm-up, then a constant rate, within each phase.

    Args:
        warmup_fraction: Share of the phase's steps, in [0, 1).
    """

    name: Literal["constant"]
    warmup_fraction: float

    def __post_init__(self) -> None:
        require(0 <= self.warmup_fraction < 1, "warmup_fraction", self.warmup_fraction, "[0, 1)")


Scheduler = Cosine | Constant


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """Cross-entropy on the target labels.

    Args:
        label_smoothing: In [0, 1).
    """

    name: Literal["supervised"]
    label_smoothing: float

    def __post_init__(self) -> None:
        require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "[0, 1)")
