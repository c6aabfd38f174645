"""How Lightning trains on several devices: it wraps the model, and knows nothing of the other processes."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn

from tl_experiments.config.trainers import Ddp, Fsdp, OneDevice, Trainer
from tl_experiments.data.batches import Share, fewest_images
from tl_experiments.errors import ConfigError
from tl_experiments.training.audit import live_statistics
from tl_experiments.training.build import Parts
from tl_experiments.training.environment import device_of
from tl_experiments.training.ranks import Ranks


class OneProcess(LightningEnvironment):
    """One process on one device, whatever the variables of SLURM and torchrun say.

    Left to itself Lightning would start processes by this command line, put SLURM's jobs back into the queue, and,
    knowing of several processes, exchange a flag before every step, for which the CPU waits for the GPU.
    """

    @property
    def creates_processes_externally(self) -> bool:
        """Nothing is to be started."""
        return True

    def local_rank(self) -> int:
        """The only process."""
        return 0

    def node_rank(self) -> int:
        """The only node."""
        return 0

    def teardown(self) -> None:
        """Its parent removes WORLD_SIZE from the environment, which the next phase needs."""


class InPlace(SingleDeviceStrategy):
    """For a model that is divided already, whose shares stay on their devices between fits."""

    def teardown(self) -> None:
        """Without what Lightning's does first: it takes model and optimizer to the CPU."""
        self.precision_plugin.teardown()
        assert self.accelerator is not None
        self.accelerator.teardown()


def prepared(cfg: Trainer, parts: Parts, accelerator: str) -> Parts:
    """What several devices need to know about BatchNorm, done to the model and noted.

    Each process normalises with the images of its own part of a batch; with ``sync_batchnorm`` with those of all.

    Raises:
        ConfigError: A device has a single image, or a CPU should synchronise.
    """
    world_size, least = cfg.world_size, 2 * cfg.world_size
    if isinstance(cfg, OneDevice) or not (live := _live_batchnorm(parts)):
        return parts
    if isinstance(cfg, Ddp) and cfg.sync_batchnorm:
        if accelerator != "gpu":
            what = f"true, but torch synchronises statistics between GPUs only; {len(live)} BatchNorms train here"
            raise ConfigError("trainer.sync_batchnorm", what, "false, or trainer.accelerator=gpu")
        convert_sync_batchnorm(parts.model)  # in place: names, parameters and modes stay
        fewest = fewest_images(parts.data.spec.sizes["train"], cfg.effective_batch_size)
        if fewest >= world_size:
            return parts
        note = (
            f"An epoch has a batch of {fewest} images for {world_size} devices: BatchNorm counted some of them twice."
        )
        return replace(parts, notes=(*parts.notes, note))
    if cfg.effective_batch_size < least:
        what = f"{cfg.effective_batch_size} over all {world_size} devices, and BatchNorm trains on 2 or more on each"
        raise ConfigError("trainer.batch_size", what, "give more, or trainer.sync_batchnorm=true")
    if world_size == 1:
        return parts
    each = cfg.effective_batch_size // world_size
    note = (
        f"BatchNorm trained with each device's own statistics, of {each} images a step, and kept the first one's "
        "running ones: trainer.sync_batchnorm=true uses those of all."
    )
    return replace(parts, notes=(*parts.notes, note))


def _live_batchnorm(parts: Parts) -> list[str]:
    """Names of those whose statistics a phase updates."""
    model = parts.model
    live = {name for steps in parts.phases for name in live_statistics(model, model.layout, steps.phase)}
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    return sorted(name for name in norms if f"{name}.running_mean" in live)


def least_images(cfg: Trainer, live: bool) -> int:
    """Of a part of a batch, where statistics are ``live``: a BatchNorm cannot train on one image of its own."""
    synchronised = isinstance(cfg, Ddp) and cfg.sync_batchnorm and cfg.world_size > 1
    return 2 if live and not synchronised else 1


def share_of(cfg: Trainer, parts: Parts, ranks: Ranks) -> Share:
    """The part of each batch that this process computes, in all phases."""
    model = parts.model
    live = any(live_statistics(model, model.layout, steps.phase) for steps in parts.phases)
    return Share(ranks.rank, ranks.world_size, least_images(cfg, live))


def placement(cfg: Trainer, accelerator: str) -> dict[str, Any]:
    """Arguments of a ``pl.Trainer`` for one fit; ``ranks.opened`` has connected the processes.

    A fit wraps the model anew, so that what its phase trains, and nothing else, is averaged over the processes.

    Args:
        cfg: Of the run.
        accelerator: ``gpu`` or ``cpu``.
    """
    alone = {"accelerator": accelerator, "devices": 1, "use_distributed_sampler": False}
    match cfg:
        case Ddp():
            strategy = DDPStrategy(
                parallel_devices=[_own_device(accelerator)],
                cluster_environment=OneProcess(),
                timeout=timedelta(seconds=cfg.timeout_s),
                broadcast_buffers=False,  # the module sends the first process's where they are read
                gradient_as_bucket_view=True,
            )
            return {**alone, "strategy": strategy}
        case Fsdp():
            return {**alone, "strategy": InPlace(_own_device(accelerator)), "plugins": [OneProcess()]}
        case _:
            return {**alone, "plugins": [OneProcess()]}


def _own_device(accelerator: str) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if accelerator == "gpu" else device_of("cpu")
