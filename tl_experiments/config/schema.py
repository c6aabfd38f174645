"""The config, typed to the leaves. Values live in ``conf/``; here stand types and ranges, and nothing else.

A group with several choices is a union of dataclasses; the ``name`` that a choice carries tells which one it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tl_experiments.config.datasets import Augmentation, Dataset
from tl_experiments.config.optimization import Optimizer, Scheduler, Supervised, TrainerConfig
from tl_experiments.config.ranges import require
from tl_experiments.errors import ConfigError
from tl_experiments.strategies.plans import Strategy

Interpolation = Literal["bilinear", "bicubic", "nearest", "lanczos"]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes the backbone's input; null means as the backbone was pretrained.

    Args:
        image_size: Side of the square input in pixels.
        mean: Per channel, of pixel values in [0, 1].
        std: Per channel, of pixel values in [0, 1].
        interpolation: ``bilinear``, ``bicubic``, ``nearest`` or ``lanczos``.
        crop_fraction: Side of the central crop as a share of the resized short side, in (0, 1].
    """

    image_size: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    interpolation: Interpolation | None
    crop_fraction: float | None

    def __post_init__(self) -> None:
        require(self.image_size is None or self.image_size > 0, "image_size", self.image_size, "a number above 0")
        require(self.mean is None or len(self.mean) == 3, "mean", self.mean, "3 numbers")
        require(self.std is None or (len(self.std) == 3 and min(self.std) > 0), "std", self.std, "3 numbers above 0")
        require(
            self.crop_fraction is None or 0 < self.crop_fraction <= 1, "crop_fraction", self.crop_fraction, "(0, 1]"
        )


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Any timm model by ``name``.

    Args:
        weights: ``pretrained`` (timm's, from the hub), ``random``, or a path: a ``.safetensors`` or ``.pth`` file, or
            the folder of an earlier run.
        kwargs: Handed to ``timm.create_model``.
    """

    name: str
    weights: str
    kwargs: Mapping[str, Any]
    preprocessing: Preprocessing


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One linear layer on the pooled features."""

    name: Literal["linear"]


@dataclass(frozen=True, kw_only=True)
class NoTracker:
    """Records on disk only."""

    name: Literal["none"]


@dataclass(frozen=True, kw_only=True)
class WandbTracker:
    """Weights & Biases, fed from the records when a command ends.

    Args:
        project: W&B project.
        entity: W&B team or user; null is the account's default.
        mode: ``auto`` is online with an API key and offline without one.
    """

    name: Literal["wandb"]
    project: str
    entity: str | None
    mode: Literal["auto", "online", "offline"]


Tracker = NoTracker | WandbTracker


@dataclass(frozen=True, kw_only=True)
class FeatureCacheOff:
    """Every step computes the frozen part of the backbone anew."""

    name: Literal["off"]


@dataclass(frozen=True, kw_only=True)
class LocalExecutor:
    """Jobs of a sweep as processes of their own on this machine.

    Args:
        jobs: Jobs at once; null is one a GPU, or on a CPU one a core up to 4.
        threads_per_job: CPU threads a job; null shares the cores evenly. Part of what fixes a CPU result's last bits.
    """

    name: Literal["local"]
    jobs: int | None
    threads_per_job: int | None

    def __post_init__(self) -> None:
        require(self.jobs is None or self.jobs > 0, "jobs", self.jobs, "1 or more")
        threads = self.threads_per_job
        require(threads is None or threads > 0, "threads_per_job", threads, "1 or more")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One job of ``tl train`` or ``tl pretrain``.

    Args:
        name: Folder of the sweep under ``output_dir``; null makes one from the overrides.
        seed: Seed of head, data order, augmentation and label subset.
        output_dir: Where sweeps go.
        print_layout: Show blocks, parameters, phases and learning rates instead of training.
        retry_failed: Run jobs again that failed earlier; without it they stay as they ended.
        debug: Show tracebacks.
    """

    backbone: BackboneConfig
    head: Linear
    dataset: Dataset
    augmentation: Augmentation
    freeze_strategy: Strategy
    optimizer: Optimizer
    scheduler: Scheduler
    objective: Supervised
    trainer: TrainerConfig
    tracker: Tracker
    feature_cache: FeatureCacheOff
    executor: LocalExecutor
    name: str | None
    seed: int
    output_dir: str
    print_layout: bool
    retry_failed: bool
    debug: bool

    def __post_init__(self) -> None:
        require(
            self.name is None or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name) is not None,
            "name",
            repr(self.name),
            "letters, digits and . _ - (at most 100)",
        )
        require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")
        if self.optimizer.lr is None and self.optimizer.name not in self.freeze_strategy.base_lr:
            raise ConfigError(
                "optimizer.lr",
                f"null, and {self.freeze_strategy.name} has no rule for {self.optimizer.name}",
                f"give optimizer.lr, or freeze_strategy.base_lr.{self.optimizer.name}",
            )

    def base_lr(self) -> float:
        """The base learning rate: ``optimizer.lr``, or the strategy's rule times ``optimizer.lr_factor``."""
        if self.optimizer.lr is not None:
            return self.optimizer.lr
        return self.freeze_strategy.base_lr[self.optimizer.name] * self.optimizer.lr_factor
