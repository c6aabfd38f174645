"""Choices of the group ``trainer``: how long, and on how many devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tl_experiments.config.ranges import require


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long and on what: what every choice has.

    Args:
        max_epochs: Passes over the training images, over all phases together.
        batch_size: Training images a step; with ``batch_scaling=linear`` on each device.
        eval_batch_size: Images a step on val and test, on each device; changes speed and memory, and results only by
            rounding.
        accelerator: ``auto`` takes a GPU where there is one.
        precision: ``auto`` is bf16-mixed on a GPU that has it and 32-true elsewhere.
        gradient_clip_norm: Largest global gradient norm; null does not clip.
        num_workers: Loader processes for images that are not held in memory.
        accumulation: Parts in which each batch is computed, or each device's share of it, their gradients added up: the
            same step in less memory, except that BatchNorm in training sees the smaller parts.
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

    @property
    def world_size(self) -> int:
        """Processes that train one job together, each on a device of its own."""
        return 1

    @property
    def scale(self) -> int:
        """By how much the batch, and with it the rate of a strategy's rule, is larger than what is configured."""
        return 1

    @property
    def effective_batch_size(self) -> int:
        """Training images an optimizer step, over all devices."""
        return self.batch_size * self.scale


@dataclass(frozen=True, kw_only=True)
class OneDevice(TrainerConfig):
    """One device a job; several jobs are spread over devices by the executor."""

    name: Literal["default"]
    devices: ClassVar[int] = 1
    num_nodes: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class _ManyDevices(TrainerConfig):
    """Several devices that train one job together.

    Args:
        devices: On each node; on a CPU, processes.
        num_nodes: Machines, under SLURM or torchrun.
        batch_scaling: ``linear``: ``batch_size`` is that of a device, so that a step sees ``batch_size`` times the
            number of devices, and the rate of a strategy's rule is multiplied by the number of devices (Goyal et al.,
            2017); an ``optimizer.lr`` that is given stays as it is. ``none``: ``batch_size`` is divided over the
            devices, and a step is that of one device.
        timeout_s: Seconds after which a process that waits for the others gives up.
    """

    devices: int
    num_nodes: int
    batch_scaling: Literal["linear", "none"]
    timeout_s: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.devices > 0, "devices", self.devices, "1 or more")
        require(self.num_nodes > 0, "num_nodes", self.num_nodes, "1 or more")
        require(self.timeout_s > 0, "timeout_s", self.timeout_s, "a number of seconds above 0")
        # a device that does its step again would leave the others waiting
        require(self.on_out_of_memory == "fail", "on_out_of_memory", self.on_out_of_memory, "fail, on several devices")
        require(
            self.effective_batch_size >= self.world_size,
            "batch_size",
            self.batch_size,
            f"{self.world_size} or more, one a device",
        )

    @property
    def world_size(self) -> int:
        return self.devices * self.num_nodes

    @property
    def scale(self) -> int:
        return self.world_size if self.batch_scaling == "linear" else 1


@dataclass(frozen=True, kw_only=True)
class Ddp(_ManyDevices):
    """The whole model on every device, gradients averaged (DistributedDataParallel; Li et al., 2020).

    Args:
        sync_batchnorm: Normalise with the statistics of the whole batch instead of each device's share; needs GPUs.
    """

    name: Literal["ddp"]
    sync_batchnorm: bool


@dataclass(frozen=True, kw_only=True)
class Fsdp(_ManyDevices):
    """Parameters, gradients and optimizer state divided over the devices, for backbones that do not fit on one (fully
    sharded data parallel; Zhao et al., 2023).

    Frozen blocks are divided too, and computed in every step: nothing of them is kept.
    """

    name: Literal["fsdp"]

    def __post_init__(self) -> None:
        super().__post_init__()
        what = "of a model that is divided"
        require(self.ema_decay is None, "ema_decay", self.ema_decay, f"null, {what}")
        require(self.compile_backend is None, "compile_backend", self.compile_backend, f"null, {what}")
        # its scaling looks for infinite gradients in the shares of one process alone
        require(self.precision != "16-mixed", "precision", self.precision, f"auto, bf16-mixed or 32-true, {what}")


Trainer = OneDevice | Ddp | Fsdp
