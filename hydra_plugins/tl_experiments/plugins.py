"""A sweeper that expands and a launcher that hands the jobs to the verb; composed once, not twice as Hydra's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class SweeperConfig:
    """``params`` lets an experiment file carry its own sweep; the command line wins over it."""

    _target_: str = "hydra_plugins.tl_experiments.plugins.TLSweeper"
    params: dict[str, str] = field(default_factory=dict)


@dataclass
class LauncherConfig:
    """How jobs run is the choice of ``executor``."""

    _target_: str = "hydra_plugins.tl_experiments.plugins.TLLauncher"


class TLLauncher(Launcher):
    """Hands a list of jobs, each a list of overrides, to the verb's ``sweep`` method."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        self.task.sweep(self.context.config_loader, self.config, job_overrides)  # type: ignore[attr-defined]
        return []


class TLSweeper(Sweeper):
    """The jobs that the verb makes of the swept overrides, such as their cartesian product."""

    def __init__(self, params: Mapping[str, str]) -> None:
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader = hydra_context.config_loader
        self.jobs = TLLauncher()
        self.jobs.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        jobs = self.jobs.task.expand(self.loader, self.params, arguments)  # type: ignore[attr-defined]
        return self.jobs.launch(jobs, 0)


store = ConfigStore.instance()
store.store(group="hydra/sweeper", name="tl_experiments", node=SweeperConfig, provider="tl_experiments")
store.store(group="hydra/launcher", name="tl_experiments", node=LauncherConfig, provider="tl_experiments")
