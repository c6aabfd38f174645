"""The config, typed to the leaves. Values live in ``conf/``; here stand types and ranges, and nothing else.

A group with several choices is a union of dataclasses; the ``name`` that a choice carries tells which one it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tl_experiments.errors import ConfigError
from tl_experiments.strategies.plans import Strategy

Interpolation = Literal["bilinear", "bicubic", "nearest", "lanczos"]


def _require(ok: bool, key: str, got: object, expected: str) -> None:
    if not ok:
        raise ConfigError(key, f"got {got}, expected {expected}", "give a value in that range")


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
        _require(self.image_size is None or self.image_size > 0, "image_size", self.image_size, "a number above 0")
        _require(self.mean is None or len(self.mean) == 3, "mean", self.mean, "3 numbers")
        _require(self.std is None or (len(self.std) == 3 and min(self.std) > 0), "std", self.std, "3 numbers above 0")
        _require(
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
class _DatasetOptions:
    """What every dataset has.

    Args:
        val_fraction: Share of the training images carved out as val where no val split is given, in (0, 1).
        test_fraction: Share carved out as test where the dataset comes without any split, in (0, 1).
        split_seed: Seed of those splits; the same for every run of a sweep, so that runs are comparable.
        label_fraction: Share of the training labels used, in (0, 1]; stratified; smaller ones lie within larger ones.
        shots: Labels a class, for train and for val each; null uses all.
        subset_seed: Seed of ``label_fraction`` and ``shots``; null follows the run's seed.
        preload_max_bytes: Decode a split once and hold it in memory if it takes no more than this.
    """

    val_fraction: float
    test_fraction: float
    split_seed: int
    label_fraction: float | None
    shots: int | None
    subset_seed: int | None
    preload_max_bytes: int

    def __post_init__(self) -> None:
        _require(0 < self.val_fraction < 1, "val_fraction", self.val_fraction, "(0, 1)")
        _require(0 < self.test_fraction < 1, "test_fraction", self.test_fraction, "(0, 1)")
        _require(
            self.val_fraction + self.test_fraction < 1,
            "val_fraction",
            f"{self.val_fraction} with test_fraction {self.test_fraction}",
            "a sum below 1",
        )
        _require(
            self.label_fraction is None or 0 < self.label_fraction <= 1, "label_fraction", self.label_fraction, "(0, 1]"
        )
        _require(self.shots is None or self.shots > 0, "shots", self.shots, "1 or more")
        _require(
            self.label_fraction is None or self.shots is None,
            "label_fraction",
            f"{self.label_fraction} together with shots {self.shots}",
            "one of the two",
        )
        _require(self.preload_max_bytes >= 0, "preload_max_bytes", self.preload_max_bytes, "0 or more")


@dataclass(frozen=True, kw_only=True)
class Digits(_DatasetOptions):
    """1,797 handwritten digits of 8x8 pixels, embedded in scikit-learn."""

    name: Literal["digits"]


@dataclass(frozen=True, kw_only=True)
class Letters(_DatasetOptions):
    """Capital letters rendered from the fonts that come with matplotlib: a source task that needs no download.

    Args:
        images_per_class: Images of each of the 26 letters.
        size: Side of the rendered image in pixels, 8 or more.
        render_seed: Seed of fonts, positions, angles and noise.
    """

    name: Literal["letters"]
    images_per_class: int
    size: int
    render_seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.images_per_class > 0, "images_per_class", self.images_per_class, "1 or more")
        _require(self.size >= 8, "size", self.size, "8 or more")


@dataclass(frozen=True, kw_only=True)
class ImageFolder(_DatasetOptions):
    """Images in one folder a class: ``root/train|val|test/class/*`` or ``root/class/*``.

    Args:
        root: The folder.
        allow_empty: Go on where a class folder holds no image.
    """

    name: Literal["image_folder"]
    root: str | None
    allow_empty: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.root is None:
            raise ConfigError("root", "no folder given", "dataset.root=$HOME/photos")


Dataset = Digits | Letters | ImageFolder


@dataclass(frozen=True, kw_only=True)
class NoAugmentation:
    """Training images as they are."""

    name: Literal["none"]


@dataclass(frozen=True, kw_only=True)
class FlipCrop:
    """Random resized crop and horizontal flip.

    Args:
        min_area: Smallest share of the image's area in a crop, in (0, 1].
        flip_probability: In [0, 1].
    """

    name: Literal["flip_crop"]
    min_area: float
    flip_probability: float

    def __post_init__(self) -> None:
        _require(0 < self.min_area <= 1, "min_area", self.min_area, "(0, 1]")
        _require(0 <= self.flip_probability <= 1, "flip_probability", self.flip_probability, "[0, 1]")


Augmentation = NoAugmentation | FlipCrop


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
        _require(self.lr is None or self.lr > 0, "lr", self.lr, "a number above 0, or null for the strategy's rule")
        _require(self.lr_factor > 0, "lr_factor", self.lr_factor, "a number above 0")
        _require(
            self.lr is None or self.lr_factor == 1,
            "lr_factor",
            f"{self.lr_factor} together with lr {self.lr}",
            "one of the two: lr is taken literally",
        )
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")


@dataclass(frozen=True, kw_only=True)
class AdamW(_OptimizerOptions):
    """AdamW (Loshchilov & Hutter, 2019)."""

    name: Literal["adamw"]
    betas: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _require(ok, "betas", list(self.betas), "2 numbers in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class SGD(_OptimizerOptions):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"]
    momentum: float
    nesterov: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "[0, 1)")
        _require(self.momentum > 0 or not self.nesterov, "nesterov", True, "false where momentum is 0")


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
        _require(0 <= self.warmup_fraction < 1, "warmup_fraction", self.warmup_fraction, "[0, 1)")
        _require(0 <= self.final_fraction <= 1, "final_fraction", self.final_fraction, "[0, 1]")


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Linear warm-up, then a constant rate, within each phase.

    Args:
        warmup_fraction: Share of the phase's steps, in [0, 1).
    """

    name: Literal["constant"]
    warmup_fraction: float

    def __post_init__(self) -> None:
        _require(0 <= self.warmup_fraction < 1, "warmup_fraction", self.warmup_fraction, "[0, 1)")


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
        _require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "[0, 1)")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long and on what.

    Args:
        max_epochs: Passes over the training images, over all phases together.
        batch_size: Training images a step.
        eval_batch_size: Images a step on val and test; changes no result, only speed and memory.
        accelerator: ``auto`` takes a GPU where there is one.
        precision: ``auto`` is bf16-mixed on a GPU that has it and 32-true elsewhere.
        gradient_clip_norm: Largest global gradient norm; null does not clip.
        num_workers: Loader processes for images that are not held in memory.
    """

    name: Literal["default"]
    max_epochs: int
    batch_size: int
    eval_batch_size: int
    accelerator: Literal["auto", "cpu", "gpu"]
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
    gradient_clip_norm: float | None
    num_workers: int

    def __post_init__(self) -> None:
        for key in ("max_epochs", "batch_size", "eval_batch_size"):
            _require(getattr(self, key) > 0, key, getattr(self, key), "1 or more")
        clip = self.gradient_clip_norm
        _require(clip is None or clip > 0, "gradient_clip_norm", clip, "a number above 0, or null")
        _require(self.num_workers >= 0, "num_workers", self.num_workers, "0 or more")


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
        _require(self.jobs is None or self.jobs > 0, "jobs", self.jobs, "1 or more")
        threads = self.threads_per_job
        _require(threads is None or threads > 0, "threads_per_job", threads, "1 or more")


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
        _require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")
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
