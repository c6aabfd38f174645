"""What a task asks of a Ray cluster, and whether some node has it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

from tl_experiments.config.executors import RayExecutor
from tl_experiments.config.trainers import Trainer
from tl_experiments.errors import ConfigError, UserError

logger = logging.getLogger(__name__)

Amounts = Mapping[str, float]  # by Ray's names: CPU, GPU, memory in bytes, and those that a cluster gives its own
_GB = 1_000_000_000


@dataclass(frozen=True)
class Offer:
    """What a cluster has.

    Args:
        where: Its name, for messages.
        nodes: What each node has in all.
        grows: Whether it starts further nodes as it needs them, of which nothing is known here.
    """

    where: str
    nodes: tuple[Amounts, ...]
    grows: bool = False

    @property
    def any_gpu(self) -> bool:
        """Whether it has, or may get, a GPU."""
        return self.grows or any(node.get("GPU") for node in self.nodes)

    def at_once(self, wanted: Amounts) -> int:
        """How many tasks that ask for ``wanted`` its nodes take at once, were they empty."""
        return sum(
            min(math.floor(min(node.get(name, 0.0) / amount, 1e6) + 1e-6) for name, amount in wanted.items())
            for node in self.nodes
        )


def demand(executor: RayExecutor, trainer: Trainer, offer: Offer) -> dict[str, float]:
    """What a task asks for; what it does not need is left out.

    Args:
        executor: Of the sweep.
        trainer: Of the task; each of its devices is a process with cores of its own.
        offer: ``accelerator=auto`` does without a GPU where there is none.

    Raises:
        ConfigError: Ray does not run such a task.
    """
    if trainer.num_nodes > 1:
        raise ConfigError(
            "trainer.num_nodes", f"{trainer.num_nodes}, expected 1 with executor=ray", "executor=slurm, or torchrun"
        )
    wanted = {"CPU": executor.cpus_per_task * trainer.devices, "GPU": _gpus(executor, trainer, offer)}
    wanted |= {"memory": (executor.memory_gb or 0) * _GB, **executor.resources}
    return {name: amount for name, amount in wanted.items() if amount}


def _gpus(executor: RayExecutor, trainer: Trainer, offer: Offer) -> float:
    given, devices = executor.gpus_per_task, trainer.devices
    if trainer.accelerator == "cpu":
        return 0
    if given is None:
        return devices if offer.any_gpu or trainer.accelerator == "gpu" else 0
    if devices > 1 and 0 < given < devices:
        raise ConfigError(
            "executor.gpus_per_task",
            f"{given:g}, expected {devices}, one a device of the trainer",
            "null asks for them",
        )
    return given


def check_demand(wanted: Amounts, offer: Offer) -> None:
    """That a task which asks for ``wanted`` would not wait for ever.

    Raises:
        UserError: No node has that. Where the cluster grows, a warning instead.
    """
    if offer.at_once(wanted):
        return
    most = {name: max((node.get(name, 0.0) for node in offer.nodes), default=0.0) for name in wanted}
    short = {name: amount for name, amount in most.items() if amount < wanted[name]}
    has = (
        f"no node of {offer.where} has more than {_said(short)}" if short else f"no node of {offer.where} has all of it"
    )
    error = UserError("executor=ray", f"a task asks for {_said(wanted)}, and {has}", "ask for less")
    if not offer.grows:
        raise error
    logger.warning("%s, unless the cluster gets such a node", error)


def _said(amounts: Amounts) -> str:
    return ", ".join(
        f"{amount / _GB:.3g} GB of memory" if name == "memory" else f"{amount:g} {name}"
        for name, amount in amounts.items()
    )
