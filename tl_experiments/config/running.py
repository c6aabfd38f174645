"""Choices of the groups ``trainer``, ``debug``, ``feature_cache`` and ``executor``: how long, and on what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tl_experiments.config.ranges import require


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long and on what.

    Args:
        max_epochs: Passes over the training images, over all phases together.
        batch_size: Training images a step.
        eval_batch_size: Images a step on val and test; changes speed and memory, and results only by rounding.
        accelerator: ``auto`` takes a GPU where there is one.
        precision: ``auto`` is bf16-mixed on a GPU that has it and 32-true elsewhere.
        gradient_clip_norm: Largest global gradient norm; null does not clip.
        num_workers: Loader processes for images that are not held in memory.
        accumulation: Parts in which each batch is computed, their gradients added up: the same step in less memory,
            except that BatchNorm in training sees the smaller parts.
        on_out_of_memory: ``accumulate`` doubles ``accumulation`` and does the step again, and halves batches that are
            only evaluated; ``fail`` ends the run.
        ema_decay: In (0, 1): val, test and checkpoint use an exponential moving average of the weights, fresh in each
            phase, with this decay after a warm-up; null uses the weights themselves.
        early_stopping_patience: Validations without a better one, in the last phase, after which it ends; null never.
        gradient_checkpointing: Compute activations again in the backward pass instead of keeping them.
        memory_format: Layout of images and convolution weights in memory; changes speed, and results by rounding.
        compile_backend: Of ``torch.compile`` for the training step; null does not compile.
        resume_interval_s: At the end of an epoch, write what a resume needs if the last time was this long ago. Null:
            at the end of every epoch, as long as writing takes no more than a twentieth of the time.
        checkpoint: What a run keeps of its weights: ``trained``, the tensors that could change, which need the file
            that the run started from to be a model again; ``all``; or ``none``.
    """

    name: Literal["default"]
    max_epochs: int
    batch_size: int
    eval_batch_size: int
    accelerator: Literal["auto", "cpu", "gpu"]
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
    gradient_clip_norm: float | None
    num_workers: int
    accumulation: int
    on_out_of_memory: Literal["accumulate", "fail"]
    ema_decay: float | None
    early_stopping_patience: int | None
    gradient_checkpointing: bool
    memory_format: Literal["contiguous", "channels_last"]
    compile_backend: Literal["inductor", "aot_eager", "eager"] | None
    resume_interval_s: float | None
    checkpoint: Literal["trained", "all", "none"]

    def __post_init__(self) -> None:
        for key in ("max_epochs", "batch_size", "eval_batch_size", "accumulation"):
            require(getattr(self, key) > 0, key, getattr(self, key), "1 or more")
        clip = self.gradient_clip_norm
        require(clip is None or clip > 0, "gradient_clip_norm", clip, "a number above 0, or null")
        require(self.num_workers >= 0, "num_workers", self.num_workers, "0 or more")
        require(self.accumulation <= self.batch_size, "accumulation", self.accumulation, "at most batch_size")
        interval = self.resume_interval_s
        decay, patience = self.ema_decay, self.early_stopping_patience
        require(decay is None or 0 < decay < 1, "ema_decay", decay, "(0, 1), or null")
        require(patience is None or patience > 0, "early_stopping_patience", patience, "1 or more, or null")
        require(interval is None or interval >= 0, "resume_interval_s", interval, "0 or more seconds, or null")


@dataclass(frozen=True, kw_only=True)
class Debug:
    """Ways to look into a run.

    Args:
        traceback: Show tracebacks.
        images_per_split: Use no more than this many images of each split.
        evaluate_on_train: Val and test are the training images.
        profile: Profile a few training steps.
    """

    name: Literal["none", "traceback", "limit", "overfit", "profile"]
    traceback: bool
    images_per_split: int | None
    evaluate_on_train: bool
    profile: bool

    def __post_init__(self) -> None:
        images = self.images_per_split
        require(images is None or images > 0, "images_per_split", images, "1 or more, or null")

    @property
    def no_result(self) -> bool:
        """Whether the run's numbers say nothing about its arm."""
        return self.images_per_split is not None or self.evaluate_on_train or self.profile


@dataclass(frozen=True, kw_only=True)
class _CacheOptions:
    """What every choice has: decoded images are kept in any case.

    Args:
        dir: Folder of decoded images and activations; null is ``.cache`` in ``output_dir``.
        max_bytes: Most that the folder may hold; what was used least recently makes room.
    """

    dir: str | None
    max_bytes: int

    def __post_init__(self) -> None:
        require(self.max_bytes >= 0, "max_bytes", self.max_bytes, "0 or more")


@dataclass(frozen=True, kw_only=True)
class FeatureCacheAuto(_CacheOptions):
    """What a phase freezes is computed once an image and kept, wherever that changes no result.

    Args:
        views: Random views of each training image that are kept where images are augmented; epochs go through them in
            turn. Null keeps none: augmented images train live.
        dtype: Keep floating-point activations in half precision, which changes results; null as they were computed.
        hold_max_bytes: Hold activations, and on a GPU images too, in the memory of the device up to this size, and
            above it read them from the memory-mapped file; null is half of what a GPU has free, or an eighth of the
            machine's memory.
    """

    name: Literal["auto"]
    views: int | None
    dtype: Literal["float16", "bfloat16"] | None
    hold_max_bytes: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        hold = self.hold_max_bytes
        require(hold is None or hold >= 0, "hold_max_bytes", hold, "0 or more, or null")
        require(self.views is None or self.views > 0, "views", self.views, "1 or more, or null")


@dataclass(frozen=True, kw_only=True)
class FeatureCacheOff(_CacheOptions):
    """Every step computes the frozen part of the backbone anew."""

    name: Literal["off"]
    views: ClassVar[None] = None
    dtype: ClassVar[None] = None


FeatureCache = FeatureCacheAuto | FeatureCacheOff


@dataclass(frozen=True, kw_only=True)
class LocalExecutor:
    """Jobs of a sweep as processes of their own on this machine.

    Args:
        jobs_per_device: Jobs at once on each GPU, or on the CPU; null is one a GPU, or on a CPU one a core up to 4.
        threads_per_job: CPU threads a job; null shares the cores evenly. Part of what fixes a CPU result's last bits.
    """

    name: Literal["local"]
    jobs_per_device: int | None
    threads_per_job: int | None

    def __post_init__(self) -> None:
        jobs = self.jobs_per_device
        require(jobs is None or jobs > 0, "jobs_per_device", jobs, "1 or more")
        threads = self.threads_per_job
        require(threads is None or threads > 0, "threads_per_job", threads, "1 or more")
