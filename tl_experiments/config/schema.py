"""The config of a job, typed to the leaves. Values live in ``conf/``; here stand types and ranges, and nothing else.

Each group has its file beside this one.
A group with several choices is a union of dataclasses; the ``name`` that a choice carries tells which one it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from tl_experiments.config.augmentations import Augmentation
from tl_experiments.config.backbones import BackboneConfig
from tl_experiments.config.datasets import Dataset
from tl_experiments.config.executors import Executor
from tl_experiments.config.heads import Head
from tl_experiments.config.optimization import Optimizer, Scheduler, Supervised, Timm
from tl_experiments.config.ranges import require
from tl_experiments.config.running import Debug, FeatureCache
from tl_experiments.config.trackers import Trackers
from tl_experiments.config.trainers import Fsdp, Trainer
from tl_experiments.errors import ConfigError
from tl_experiments.strategies.plans import Strategy, trains_head_only


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One job of ``tl train`` or ``tl pretrain``.

    Args:
        name: Folder of the sweep under ``output_dir``; null makes one from the overrides.
        seed: Seed of head, data order, augmentation and label subset.
        tuning_seed: In a sweep, run all settings of an arm with this seed only, choose one on val, and run the other
            seeds with it alone. Null runs every setting with every seed.
        output_dir: Where sweeps go.
        print_layout: Show blocks, parameters, phases and learning rates instead of training.
        retry_failed: Run jobs again that failed earlier; without it they stay as they ended.
        dry_run: Show what the jobs share and what they would cost instead of running them.
    """

    backbone: BackboneConfig
    head: Head
    dataset: Dataset
    augmentation: Augmentation
    freeze_strategy: Strategy
    optimizer: Optimizer
    scheduler: Scheduler
    objective: Supervised
    trainer: Trainer
    tracker: Trackers
    feature_cache: FeatureCache
    executor: Executor
    name: str | None
    seed: int
    tuning_seed: int | None
    output_dir: str
    print_layout: bool
    retry_failed: bool
    dry_run: bool
    debug: Debug
    _needs_rate: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(
            self.name is None or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name) is not None,
            "name",
            repr(self.name),
            "letters, digits and . _ - (at most 100)",
        )
        require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")
        tuning = self.tuning_seed
        require(tuning is None or 0 <= tuning < 2**32, "tuning_seed", tuning, "0 to 4294967295, or null")
        channels = self.dataset.channels
        for key in ("mean", "std"):
            values = getattr(self.backbone.preprocessing, key)
            if values is not None and len(values) != channels:
                mean = ",".join([f"{sum(values) / len(values):.3g}"] * channels)
                raise ConfigError(
                    f"backbone.preprocessing.{key}",
                    f"got {values}, expected {channels} number{'s' if channels > 1 else ''}, one a channel",
                    f"for example 'backbone.preprocessing.{key}=[{mean}]'",
                )
        self._check_augmentation(channels)
        self._check_solved_head()
        if isinstance(self.trainer, Fsdp) and isinstance(self.optimizer, Timm):
            what = "timm on a model that is divided, of which its optimizers would see a share"
            raise ConfigError("optimizer", what, "optimizer=adamw or sgd, or trainer=ddp")
        if self._needs_rate and self.rule() is None and not self.head.is_solved:
            raise ConfigError(
                "optimizer.lr",
                f"null, and {self.freeze_strategy.name} has no rule for {self.optimizer.rule}",
                f"give optimizer.lr, or freeze_strategy.base_lr.{self.optimizer.rule}",
            )

    def _check_augmentation(self, channels: int) -> None:
        if channels in (1, 3):
            return
        name = self.augmentation.name
        if name in ("trivial", "randaugment"):
            what = f"{name} changes colours, for which 1 or 3 channels are expected, got {channels}"
            raise ConfigError("augmentation", what, "augmentation=flip_crop, mixup or cutmix")
        if name != "none" and self.backbone.preprocessing.interpolation == "lanczos":
            what = f"lanczos together with augmentation={name} needs 1 or 3 channels, got {channels}"
            raise ConfigError("backbone.preprocessing.interpolation", what, "give bicubic")

    def _check_solved_head(self) -> None:
        name = self.head.name
        if not self.head.is_solved:
            return
        if not trains_head_only(self.freeze_strategy):
            what = f"{name}, which is solved on fixed features, together with {self.freeze_strategy.name}"
            raise ConfigError("head", what, "freeze_strategy=feature_extraction, or head=linear")
        if self.trainer.name != "default":
            what = f"{name}, which is solved on one device in seconds, together with trainer={self.trainer.name}"
            raise ConfigError("head", what, "trainer=default, or head=linear")
        if self.feature_cache.name == "off":
            what = f"{name}, which is solved on kept features, together with feature_cache=off"
            raise ConfigError("head", what, "feature_cache=auto, or head=linear")
        if self.augmentation.name != "none":
            what = f"{name}, which sees each image once, together with augmentation={self.augmentation.name}"
            raise ConfigError("head", what, "augmentation=none, or head=linear")
        if self.objective.class_weights != "none":
            what = f"{self.objective.class_weights} together with {name}, which is solved and weighs all images equally"
            raise ConfigError("objective.class_weights", what, "objective.class_weights=none, or head=linear")
        if self.dataset.sampling != "uniform":
            what = f"{self.dataset.sampling} together with {name}, which sees each image once"
            raise ConfigError("dataset.sampling", what, "dataset.sampling=uniform, or head=linear")

    def rule(self) -> float | None:
        """``optimizer.lr``, or the strategy's rule times ``optimizer.lr_factor`` and the trainer's ``scale``.

        None where there is neither.
        """
        if self.optimizer.lr is not None:
            return self.optimizer.lr
        rule = self.freeze_strategy.base_lr.get(self.optimizer.rule)
        return None if rule is None else rule * self.optimizer.lr_factor * self.trainer.scale

    def base_lr(self) -> float:
        """The base learning rate; 1 where a range test finds out what it should be."""
        rule = self.rule()
        return 1.0 if rule is None else rule


@dataclass(frozen=True, kw_only=True)
class LrRange:
    """The rates of a learning-rate range test.

    Args:
        min_lr: Base rate of the first step.
        max_lr: Base rate of the last step.
        steps: Number of steps, each at a higher rate.
        phase: Which phase of the strategy to test.
    """

    min_lr: float
    max_lr: float
    steps: int
    phase: Literal["first", "last"]

    def __post_init__(self) -> None:
        require(self.min_lr > 0, "min_lr", self.min_lr, "a number above 0")
        require(self.max_lr > self.min_lr, "max_lr", self.max_lr, f"a number above min_lr {self.min_lr}")
        require(self.steps >= 10, "steps", self.steps, "10 or more")


@dataclass(frozen=True, kw_only=True)
class LrConfig(TrainConfig):
    """One job of ``tl lr``."""

    lr_range: LrRange
    _needs_rate: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Tune:
    """The search of ``tl tune``.

    Args:
        trials: Of each arm, those that are pruned, diverge or fail included.
        parallel: Trials of each arm that are proposed, and run, at once. More of them know less of each other.
        sampler: ``tpe``, the tree-structured Parzen estimator (Bergstra et al., 2011), or ``random``.
        pruner: Ends trials early that are behind the others in val accuracy: ``median`` below their median (Golovin et
            al., 2017), ``hyperband`` by brackets of successive halving (Li et al., 2018). Heads on fixed features are
            trained together and never pruned.
        objectives: ``accuracy`` on val, and ``seconds`` of a trial's runs, ``wall_clock_s`` in their records: with both
            the search is for their Pareto front.
    """

    trials: int
    parallel: int
    sampler: Literal["tpe", "random"]
    pruner: Literal["none", "median", "hyperband"]
    objectives: tuple[Literal["accuracy", "seconds"], ...]

    def __post_init__(self) -> None:
        require(self.trials > 0, "trials", self.trials, "1 or more")
        require(self.parallel > 0, "parallel", self.parallel, "1 or more")
        given = ", ".join(self.objectives)
        known = set(self.objectives) in ({"accuracy"}, {"accuracy", "seconds"})
        require(known and len(self.objectives) == len(set(self.objectives)), "objectives", f"[{given}]",
                "[accuracy] or [accuracy,seconds]")  # fmt: skip
        if self.pruner != "none" and len(self.objectives) > 1:
            raise ConfigError("pruner", f"{self.pruner} together with two objectives", "tune.pruner=none")


@dataclass(frozen=True, kw_only=True)
class TuneConfig(TrainConfig):
    """One trial of ``tl tune``."""

    tune: Tune

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tune.pruner != "none" and self.trainer.world_size > 1:
            what = f"{self.tune.pruner} together with {self.trainer.world_size} devices a job"
            raise ConfigError("tune.pruner", what, "tune.pruner=none")
