"""Choices of the groups ``trainer``, ``feature_cache`` and ``executor``: how long, and on what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
    checkpoint: Literal["trained", "all", "none"]

    def __post_init__(self) -> None:
        for key in ("max_epochs", "batch_size", "eval_batch_size"):
            require(getattr(self, key) > 0, key, getattr(self, key), "1 or more")
        clip = self.gradient_clip_norm
        require(clip is None or clip > 0, "gradient_clip_norm", clip, "a number above 0, or null")
        require(self.num_workers >= 0, "num_workers", self.num_workers, "0 or more")


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
