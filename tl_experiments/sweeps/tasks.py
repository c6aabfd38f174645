"""What one process runs: a task of one job, or of several that are trained in one computation."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tl_experiments.config.backbones import BackboneConfig
from tl_experiments.config.schema import TrainConfig
from tl_experiments.errors import ConfigError
from tl_experiments.strategies.plans import ANY_NET, frozen_prefix
from tl_experiments.sweeps.jobs import Job
from tl_experiments.training.groups import ALONE, LEAST_VISITS, SharedWork, group_key, source_key, why_live
from tl_experiments.types import Phase

LOG_FILE = "job.log"


@dataclass(frozen=True)
class Task:
    """Jobs of one process.

    Args:
        jobs: One, or several with equal ``group_key``.
        done: Positions of jobs that ended before: they are computed with the others, since the grouping fixes the last
            bits of a result, and not written again.
        shared: What it does for other tasks.
    """

    jobs: tuple[Job, ...]
    done: frozenset[int] = frozenset()
    shared: SharedWork = ALONE

    @property
    def todo(self) -> tuple[Job, ...]:
        """The jobs whose results are wanted."""
        return tuple(job for position, job in enumerate(self.jobs) if position not in self.done)

    @property
    def id(self) -> str:
        """12 hex digits or so; that of its job, where it has only one."""
        ids = [job.id for job in self.jobs]
        return ids[0] if len(ids) == 1 else hashlib.sha256(" ".join(ids).encode()).hexdigest()[:12]

    @property
    def log(self) -> str:
        """Where its output goes, from the sweep's folder."""
        return f"{self.id}/{LOG_FILE}" if len(self.jobs) == 1 else f"logs/{self.id}.log"

    def split(self, left: Sequence[int]) -> list[Task]:
        """Tasks of about half the jobs at the positions ``left``, to find the one that brings the others down."""
        jobs = tuple(self.jobs[position] for position in left)
        middle = (len(jobs) + 1) // 2
        return [Task(half, shared=self.shared) for half in (jobs[:middle], jobs[middle:]) if half]


def make_tasks(jobs: Sequence[Job], todo: Sequence[Job], stored: Sequence[Sequence[str]]) -> list[Task]:
    """The tasks that run ``todo``: first those that give results early and warm caches, heads on fixed features.

    Args:
        jobs: All of the command, those that are done as well.
        todo: Those to run.
        stored: Ids of the jobs of earlier tasks of the sweep. A task that all belong to the command is formed again as
            it was; jobs that are in none of these are grouped by ``group_key``.
    """
    wanted = {job.id for job in todo}
    groups = [group for group in _again(jobs, stored) if wanted & {job.id for job in group}]
    grouped = {job.id for group in groups for job in group}
    fresh: dict[str, list[Job]] = {}
    for job in todo:
        if job.id not in grouped:
            fresh.setdefault(group_key(job.config) or job.id, []).append(job)
    tasks = [
        Task(group, frozenset(position for position, job in enumerate(group) if job.id not in wanted))
        for group in (*groups, *(tuple(group) for group in fresh.values()))
    ]
    place = {job.id: number for number, job in enumerate(jobs)}
    tasks.sort(key=lambda task: (_rank(task.jobs[0].config), min(place[job.id] for job in task.todo)))
    return _sharing(tasks)


def trains_live(config: TrainConfig) -> bool:
    """Whether some phase of the run needs the images' pixels at every step."""
    return why_live(config) is not None or any(frozen == 0 for frozen in _frozen_prefixes(config))


def is_fused(config: TrainConfig) -> bool:
    """Whether the run is a head on fixed features, trained with others in one computation."""
    return group_key(config) is not None


def encoded_views(config: TrainConfig) -> dict[str, frozenset[str]]:
    """Frozen prefixes whose activations the run keeps, one for each cut; equal names are shared.

    Returns:
        For each, the views in which it sees training images: ``""`` as they are, as it sees those of val and test.
    """
    if why_live(config) is not None:
        return {}
    epochs_in_all = config.trainer.max_epochs
    try:
        plan = config.freeze_strategy.plan(ANY_NET)
    except ConfigError:  # it names blocks of a certain net
        return {_prefix(config, repr(config.freeze_strategy)): _views(config, 0, epochs_in_all)}
    ends = [*(phase.start_fraction for phase in plan[1:]), 1.0]
    found: dict[str, frozenset[str]] = {}
    for phase, end in zip(plan, ends, strict=True):
        first, last = phase.start_fraction * epochs_in_all, end * epochs_in_all
        depth = len(ANY_NET.blocks) - frozen_prefix(phase, ANY_NET)
        if depth < len(ANY_NET.blocks) and (last - first >= LEAST_VISITS or is_fused(config)):
            name = _prefix(config, str(depth))
            found[name] = found.get(name, frozenset()) | _views(config, math.floor(first), math.ceil(last))
    return found


def _views(config: TrainConfig, first_epoch: int, end_epoch: int) -> frozenset[str]:
    """What the epochs [first_epoch, end_epoch) see, which go through the random views in turn."""
    views = config.feature_cache.views
    if config.augmentation.name == "none" or views is None:
        return frozenset({""})
    return frozenset(f"{config.augmentation} {epoch % views}" for epoch in range(first_epoch, end_epoch))


def _prefix(config: TrainConfig, cut: str) -> str:
    seed = config.seed if config.backbone.weights == "random" else None
    kept = (config.trainer.precision, config.trainer.memory_format, config.feature_cache.dtype)
    return repr((config.backbone, seed, *kept, cut))


def _again(jobs: Sequence[Job], stored: Sequence[Sequence[str]]) -> list[tuple[Job, ...]]:
    by_id = {job.id: job for job in jobs}
    groups = [tuple(by_id[one] for one in ids) for ids in stored if by_id.keys() >= set(ids)]
    return [group for group in groups if len(group) == 1 or _can_be_one(group)]


def _can_be_one(group: Sequence[Job]) -> bool:
    """Options that are not part of a job's identity, such as ``feature_cache``, may have changed since."""
    keys = {group_key(job.config) for job in group}
    return len(keys) == 1 and None not in keys


def _rank(config: TrainConfig) -> int:
    """0 for heads on fixed features, 1 for a tail on fixed activations, 2 for what trains the whole net."""
    if is_fused(config):
        return 0
    prefixes = _frozen_prefixes(config)
    return 1 if len(prefixes) == 1 and prefixes[0] > 0 else 2


def _frozen_prefixes(config: TrainConfig) -> list[int]:
    """Of each phase, by its plan for a net that stands for any; 1 where the plan names blocks of a certain one."""
    try:
        plan: tuple[Phase, ...] = config.freeze_strategy.plan(ANY_NET)
    except ConfigError:
        return [1]
    return [frozen_prefix(phase, ANY_NET) for phase in plan]


def _sharing(tasks: Sequence[Task]) -> list[Task]:
    """The tasks, told of each other: the first to decode an image does it for the backbones of all."""
    sources = [source_key(task.jobs[0].config.dataset) for task in tasks]
    backbones: dict[str, dict[str, BackboneConfig]] = {}
    for task, source in zip(tasks, sources, strict=True):
        known = backbones.setdefault(source, {})
        known |= {repr(job.config.backbone): job.config.backbone for job in task.jobs}
    counts = Counter(sources)
    return [
        replace(task, shared=SharedWork(tuple(backbones[source].values()), counts[source] > 1 or _any_live(task)))
        for task, source in zip(tasks, sources, strict=True)
    ]


def _any_live(task: Task) -> bool:
    return any(trains_live(job.config) for job in task.jobs)
