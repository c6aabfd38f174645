"""Settings tuned on one seed: which jobs of a sweep come first, and which of the others run at all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tl_experiments.errors import ConfigError
from tl_experiments.records import RunRecord
from tl_experiments.sweeps.jobs import Job
from tl_experiments.training.identity import arm, job_id

# From the finished runs of each setting of an arm to the key of the setting to take
Choose = Callable[[Mapping[str, Sequence[RunRecord]]], str]
_Arms = dict[tuple[str, ...], dict[str, list[Job]]]  # arm -> setting -> its jobs


@dataclass(frozen=True)
class Stages:
    """The jobs of a sweep in two parts.

    Args:
        first: Those with the tuning seed, and all of an arm that has one setting only.
        arms: Arm -> setting -> jobs, of the arms with something to choose.
    """

    first: tuple[Job, ...]
    arms: Mapping[tuple[str, ...], Mapping[str, Sequence[Job]]]

    def second(self, records: Mapping[str, RunRecord], choose: Choose) -> tuple[list[Job], dict[str, str]]:
        """What the first part says of the rest.

        Args:
            records: Job id -> record, of the jobs that finished.
            choose: Reads val only.

        Returns:
            The jobs of the chosen settings, and job id -> why not of the others.
        """
        done = {job.id for job in self.first}
        run: list[Job] = []
        left_out: dict[str, str] = {}
        for settings in self.arms.values():
            finished = {
                setting: [records[job.id] for job in jobs if job.id in done and job.id in records]
                for setting, jobs in settings.items()
            }
            tried = {setting: runs for setting, runs in finished.items() if runs}
            chosen = choose(tried) if tried else None
            for setting, jobs in settings.items():
                rest = [job for job in jobs if job.id not in done]
                if setting == chosen:
                    run += rest
                    continue
                seed = jobs[0].config.tuning_seed
                why = (
                    f"val chose another setting with seed {seed}" if tried else f"no setting finished with seed {seed}"
                )
                left_out |= {job.id: why for job in rest}
        return run, left_out


def stages(jobs: Sequence[Job]) -> Stages:
    """Divide a sweep; without ``tuning_seed`` all of it comes first.

    Raises:
        ConfigError: An arm with several settings has none with the tuning seed.
    """
    seed = jobs[0].config.tuning_seed
    if seed is None:
        return Stages(tuple(jobs), {})
    arms: _Arms = defaultdict(lambda: defaultdict(list))
    for job in jobs:
        arms[tuple(arm(job.config).values())][_setting(job, seed)].append(job)
    several = {labels: settings for labels, settings in arms.items() if len(settings) > 1}
    for labels, settings in several.items():
        if any(all(job.config.seed != seed for job in same) for same in settings.values()):
            seeds = sorted({job.config.seed for same in settings.values() for job in same})
            raise ConfigError(
                "tuning_seed",
                f"{seed}, which is not among the seeds of {labels[-1]}: {', '.join(map(str, seeds))}",
                f"tuning_seed={seeds[0]}, or tuning_seed=null",
            )
    waiting = {job.id for each in several.values() for same in each.values() for job in same if job.config.seed != seed}
    return Stages(tuple(job for job in jobs if job.id not in waiting), several)


def _setting(job: Job, seed: int) -> str:
    """What is the same for a job and for those that repeat it with another seed, split, fold or choice of labels."""
    dataset = replace(job.config.dataset, fold=0, split_seed=0, subset_seed=0)
    return job_id(replace(job.config, seed=seed, dataset=dataset))
