"""Choices of the groups ``optimizer``, ``scheduler`` and ``objective``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tl_experiments.config.ranges import require


@dataclass(frozen=True, kw_only=True)
class _OptimizerOptions:
    """What every optimizer has.

    Args:
        lr: Base learning rate; null takes the freeze strategy's own rule.
        lr_factor: Multiplies the strategy's rule; swept, it tunes every arm with an equal budget.
        weight_decay: On weights of two dimensions or more; norms and biases are not decayed.
    """

    name: str
    lr: float | None
    lr_factor: float
    weight_decay: float

    @property
    def rule(self) -> str:
        """Under which name a strategy's learning-rate rule is looked up."""
        return self.name

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


@dataclass(frozen=True, kw_only=True)
class Timm(_OptimizerOptions):
    """Any optimizer of timm's factory.

    Args:
        algorithm: timm's name for it, for example ``lamb``; a strategy's rule for that name is used if it has one.
        kwargs: Handed to the optimizer.
    """

    name: Literal["timm"]
    algorithm: str
    kwargs: Mapping[str, Any]

    @property
    def rule(self) -> str:
        return self.algorithm


Optimizer = AdamW | SGD | Timm


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


@dataclass(frozen=True, kw_only=True)
class OneCycle:
    """The 1cycle policy (Smith & Topin, 2019) within each phase: half a cosine up, half a cosine down.

    Args:
        warmup_fraction: Share of the phase's steps in which the rate rises, in (0, 1).
        initial_fraction: Rate at the first step as a share of the base rate, in (0, 1].
        final_fraction: Rate at the last step as a share of the base rate, in (0, 1].
    """

    name: Literal["one_cycle"]
    warmup_fraction: float
    initial_fraction: float
    final_fraction: float

    def __post_init__(self) -> None:
        require(0 < self.warmup_fraction < 1, "warmup_fraction", self.warmup_fraction, "(0, 1)")
        require(0 < self.initial_fraction <= 1, "initial_fraction", self.initial_fraction, "(0, 1]")
        require(0 < self.final_fraction <= 1, "final_fraction", self.final_fraction, "(0, 1]")


@dataclass(frozen=True, kw_only=True)
class WarmRestarts:
    """SGDR (Loshchilov & Hutter, 2017) within each phase: ``cycles`` half cosines, each from the base rate down.

    Args:
        cycles: Number of cycles in the phase, 1 or more.
        cycle_multiplier: Length of a cycle as a multiple of the one before, 1 or more.
        final_fraction: Rate at the end of each cycle as a share of the base rate, in [0, 1].
    """

    name: Literal["warm_restarts"]
    cycles: int
    cycle_multiplier: float
    final_fraction: float

    def __post_init__(self) -> None:
        require(self.cycles >= 1, "cycles", self.cycles, "1 or more")
        require(self.cycle_multiplier >= 1, "cycle_multiplier", self.cycle_multiplier, "1 or more")
        require(0 <= self.final_fraction <= 1, "final_fraction", self.final_fraction, "[0, 1]")


Scheduler = Cosine | Constant | OneCycle | WarmRestarts


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """Cross-entropy on the target labels.

    Args:
        label_smoothing: In [0, 1).
        class_weights: ``balanced`` weighs each class by n / (n_classes * n_of_class) of the training images.
    """

    name: Literal["supervised"]
    label_smoothing: float
    class_weights: Literal["none", "balanced"]

    def __post_init__(self) -> None:
        require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "[0, 1)")
