"""How Lightning trains on several devices: it wraps the model, and knows nothing of the other processes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy

from tl_experiments.config.trainers import Ddp, Trainer
from tl_experiments.training.environment import device_of


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
            device = torch.device("cuda", torch.cuda.current_device()) if accelerator == "gpu" else device_of("cpu")
            strategy = DDPStrategy(
                parallel_devices=[device],
                cluster_environment=OneProcess(),
                timeout=timedelta(seconds=cfg.timeout_s),
                broadcast_buffers=False,  # the module sends the first process's where they are read
                gradient_as_bucket_view=True,
            )
            return {**alone, "strategy": strategy}
        case _:
            return {**alone, "plugins": [OneProcess()]}
