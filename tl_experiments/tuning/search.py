"""The search of a command: rounds of trials of all arms, then the other seeds with what val chose."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from tl_experiments.config.schema import Tune, TuneConfig
from tl_experiments.records import RunRecord, storing
from tl_experiments.safe_text import plain
from tl_experiments.sweeps.bookkeeping import finished_records, has_record
from tl_experiments.sweeps.jobs import Job, Trial, without_secrets
from tl_experiments.sweeps.ledger import ENDED_BADLY, Ledger
from tl_experiments.sweeps.pruning import STUDY_FILE, import_optuna, open_journal
from tl_experiments.sweeps.sweep import Outcome, preview, run_sweep
from tl_experiments.sweeps.tuning import Choose
from tl_experiments.tuning.dimensions import Interval, Suggester
from tl_experiments.tuning.space import SearchedArm, Space
from tl_experiments.tuning.studies import Proposal, Search

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

logger = logging.getLogger(__name__)

Setting = tuple[str, ...]  # as overrides


@dataclass(frozen=True)
class _Asked:
    """What one arm is to run in a round: its proposals with their jobs."""

    arm: SearchedArm
    search: Search
    proposals: tuple[tuple[Proposal, tuple[Job, ...]], ...]


class Tuning:
    """One command's search.

    Args:
        space: Of the command.
        folder: Of the sweep.
        command: As it was typed.
        choose: Takes one of an arm's settings, by val.
        storage: Of the trials.
    """

    def __init__(self, space: Space, folder: Path, command: str, choose: Choose, storage: BaseStorage) -> None:
        self._space, self._folder, self._command, self._choose = space, folder, command, choose
        self._tune = tune_of(space)
        self._failed: dict[str, list[Job]] = {}  # of the arms that were given up, by name
        self._composed: dict[tuple[str, Setting], list[Job]] = {}
        with storing(folder / STUDY_FILE):
            self._searches = {
                arm.name: Search(storage, arm.name, self._tune, space.tuning_seed, arm.defaults, _settler(space, arm))
                for arm in space.arms
            }

    def run(self) -> Outcome:
        """All that is missing; a round of all arms is one sweep, so that its jobs share what they can."""
        trained = self._retry()
        for asked in self._rounds():
            self._announce(asked)
            outcome = self._run_round(asked)
            trained += outcome.trained if outcome else 0
            complete = self._tell(asked)
            self._enter_budgets()
            if outcome and not complete:
                return replace(outcome, trained=trained)
        self._enter_budgets()  # what was tried again, and what was told just before a kill
        jobs, excused = self._last_jobs()
        if any(job.config.tuning_seed is not None and not has_record(self._folder, job) for job in jobs):
            logger.info("the other seeds, with the setting that val chose for each arm")
        outcome = run_sweep(jobs, self._folder, self._command)
        bad = tuple(entry for entry in outcome.bad if entry.id not in excused)
        return replace(outcome, trained=trained + outcome.trained, bad=bad)

    def preview(self) -> str:
        """What the next sweep would run and cost, and what would follow."""
        then = ["then the other seeds with the setting that val chooses for each arm"] if self._has_seeds() else []
        asked = next(self._rounds(), None)
        if asked is None:
            return preview(self._last_jobs()[0], self._folder)
        lines = [preview(_distinct(asked), self._folder)]
        for one in asked:
            for proposal, _ in one.proposals:
                number, setting = proposal.number + 1, plain(" ".join(proposal.setting))
                lines.append(f"trial {number} of {self._tune.trials} of {_name(one.arm)}: {setting}")
        if any(one.proposals[-1][0].number + 1 < self._tune.trials for one in asked):
            lines.append(f"then further trials up to {self._tune.trials} of each arm, by what these will say")
        return "\n".join([*lines, *then])

    def fronts(self) -> str:
        """Of each arm, the trials that none beats in both objectives; empty with one objective."""
        lines = []
        for arm in self._space.arms if len(self._tune.objectives) > 1 else ():
            search = self._searches[arm.name]
            lines.append(f"Pareto front of {_name(arm)}: val accuracy, seconds, setting")
            for trial in search.front():
                reached = dict(zip(self._tune.objectives, trial.values, strict=True))
                setting = plain(" ".join(search.setting(trial)))
                lines.append(f"  {reached['accuracy']:.4f}  {reached['seconds']:8.1f}  {setting}")
            lines.append("")
        return "".join(f"{line}\n" for line in lines)

    def _has_seeds(self) -> bool:
        arm = self._space.arms[0]
        return bool(self._space.jobs(arm.overrides, arm.example.overrides, tuning=False))

    def _rounds(self) -> Iterator[list[_Asked]]:
        """One at a time; what is proposed depends on what was told of the one before."""
        while True:
            asked = []
            for arm in self._space.arms:
                if arm.name in self._failed:
                    continue
                search = self._searches[arm.name]
                with storing(self._folder / STUDY_FILE):
                    proposals = search.propose()
                if proposals:
                    asked.append(_Asked(arm, search, tuple((one, self._jobs(arm, one)) for one in proposals)))
            if not asked:
                return
            yield asked

    def _run_round(self, asked: Sequence[_Asked]) -> Outcome | None:
        """Run what is proposed for the first time; None where there is no such thing.

        A job that an earlier trial of the search had is done, or it was pruned or failed and is not tried again.
        """
        states = {entry.id: entry.state for entry in Ledger.open(self._folder).jobs.values()}
        known = {job.id for one in asked for _, job in self._tried(one.arm)}
        over = {job_id for job_id in known if states.get(job_id) in ("pruned", *ENDED_BADLY)}
        jobs = [job for job in _distinct(asked) if job.id not in over]
        return run_sweep(jobs, self._folder, self._command) if jobs else None

    def _jobs(self, arm: SearchedArm, proposal: Proposal) -> tuple[Job, ...]:
        jobs = self._tuning_jobs(arm, proposal.setting)
        if self._tune.pruner == "none":
            return tuple(jobs)
        return tuple(replace(job, trial=Trial(arm.name, proposal.id)) for job in jobs)

    def _announce(self, asked: Sequence[_Asked]) -> None:
        numbers = [proposal.number + 1 for one in asked for proposal, _ in one.proposals]
        logger.info(
            "trials %d to %d of %d, of %d %s",
            min(numbers), max(numbers), self._tune.trials, len(asked), "arm" if len(asked) == 1 else "arms",
        )  # fmt: skip

    def _tell(self, asked: Sequence[_Asked]) -> bool:
        """Tell the searches what became of their trials; False where one has not ended.

        An arm of which all trials failed from the first on has something else to be mended than its settings: its
        search stops there.
        """
        ledger, complete = Ledger.open(self._folder), True
        for one in asked:
            states = [_state(jobs, ledger) for _, jobs in one.proposals]
            if not one.search.ended and all(state == "failed" for state in states):
                self._failed[one.arm.name] = [job for _, jobs in one.proposals for job in jobs]
                logger.info("no more trials of %s: all of the first failed", _name(one.arm))
                continue
            for (proposal, jobs), state in zip(one.proposals, states, strict=True):
                if state is None:
                    complete = False
                    continue
                records = finished_records(jobs, self._folder) if state == "ok" else []
                reached = [_value(name, records) for name in self._tune.objectives if records]
                with storing(self._folder / STUDY_FILE):
                    one.search.tell(proposal, state, reached)
        return complete

    def _retry(self) -> int:
        """Run failed trials again, where the command asks for it, before one is chosen; returns how many."""
        if not self._space.arms[0].example.config.retry_failed:
            return 0
        ledger = Ledger.open(self._folder)
        tried = [job for arm in self._space.arms for _, job in self._tried(arm)]
        failed = [job for job in tried if job.id in ledger.jobs and ledger.jobs[job.id].state in ENDED_BADLY]
        return run_sweep(failed, self._folder, self._command).trained if failed else 0

    def _tried(self, arm: SearchedArm) -> list[tuple[Setting, Job]]:
        """The settings of all trials that have ended, each with its jobs, each once."""
        search = self._searches[arm.name]
        found = {
            job.id: (setting, job)
            for setting in dict.fromkeys(search.setting(trial) for trial in search.ended)
            for job in self._tuning_jobs(arm, setting)
        }
        return list(found.values())

    def _tuning_jobs(self, arm: SearchedArm, setting: Setting) -> list[Job]:
        key = arm.name, setting
        if key not in self._composed:
            self._composed[key] = without_secrets(self._space.jobs(arm.overrides, setting, tuning=True))
        return self._composed[key]

    def _last_jobs(self) -> tuple[list[Job], set[str]]:
        """All trials that were not pruned, and the other seeds of the setting that val chose for each arm.

        Returns:
            The jobs, and ids of those that diverged in an arm that has others: a search is for finding that out.
        """
        states = {entry.id: entry.state for entry in Ledger.open(self._folder).jobs.values()}
        last: list[Job] = []
        excused: set[str] = set()
        for arm in self._space.arms:
            tried = self._tried(arm)
            runs: dict[str, tuple[Setting, list[RunRecord]]] = {}
            for setting, job in tried:
                if has_record(self._folder, job):
                    runs.setdefault(" ".join(setting), (setting, []))[1].append(RunRecord.read(self._folder / job.id))
            jobs = [*(job for _, job in tried), *self._failed.get(arm.name, ())]
            # those that failed were tried again before
            last += [_without_retry(job) for job in jobs if states.get(job.id) != "pruned"]
            if runs:
                chosen, _ = runs[self._choose({key: records for key, (_, records) in runs.items()})]
                last += without_secrets(self._space.jobs(arm.overrides, chosen, tuning=False))
                excused |= {job.id for job in jobs if states.get(job.id) == "diverged"}
        return list({job.id: job for job in last}.values()), excused

    def _enter_budgets(self) -> None:
        """What each search has spent, in ``sweep.json``: trials that left no record count as well.

        A trial that was run again counts as it ended then, whatever the search was told.
        """
        ledger = Ledger.open(self._folder)
        intervals = {one.key: [one.low, one.high] for one in self._space.dimensions if isinstance(one, Interval)}
        budgets = {one["search"]: one for one in ledger.plan.get("tuning", [])}
        for arm in self._space.arms:
            search = self._searches[arm.name]
            states = Counter(
                _state(self._tuning_jobs(arm, search.setting(trial)), ledger) or trial.user_attrs["state"]
                for trial in search.ended
            )
            jobs = [job.id for _, job in self._tried(arm)]
            budgets[arm.name] = {"search": arm.name, "states": dict(states), "jobs": jobs, "intervals": intervals}
        ledger.plan["tuning"] = list(budgets.values())
        ledger.write()


def tune_of(space: Space) -> Tune:
    """What the command says of its search."""
    config = space.arms[0].example.config
    assert isinstance(config, TuneConfig)  # the verb's root config makes it one
    return config.tune


def in_journal(space: Space, folder: Path, command: str, choose: Choose) -> Tuning:
    """The search that goes on in the folder's journal."""
    folder.mkdir(parents=True, exist_ok=True)
    return Tuning(space, folder, command, choose, open_journal(folder, mend=True))


def in_memory(space: Space, folder: Path, command: str, choose: Choose) -> Tuning:
    """The same with a copy of the journal, to look ahead."""
    optuna = import_optuna()
    storage = optuna.storages.InMemoryStorage()
    if (folder / STUDY_FILE).exists():
        journal = open_journal(folder)
        for name in optuna.get_all_study_names(journal):
            optuna.copy_study(from_study_name=name, from_storage=journal, to_storage=storage)
    return Tuning(space, folder, command, choose, storage)


def _name(arm: SearchedArm) -> str:
    return plain(", ".join(arm.labels.values()))


def _settler(space: Space, arm: SearchedArm) -> Callable[[Suggester], Setting]:
    return lambda trial: space.settle(arm, trial)


def _distinct(asked: Sequence[_Asked]) -> list[Job]:
    """Equal proposals run once."""
    jobs: dict[str, Job] = {}
    for one in asked:
        for _, of_trial in one.proposals:
            for job in of_trial:
                jobs.setdefault(job.id, job)
    return list(jobs.values())


def _without_retry(job: Job) -> Job:
    return replace(job, config=replace(job.config, retry_failed=False))


def _state(jobs: Sequence[Job], ledger: Ledger) -> str | None:
    """Of a trial: ``ok`` where all of its jobs are, else the first that is not; None where one has not ended."""
    states = [ledger.jobs[job.id].state if job.id in ledger.jobs else None for job in jobs]
    if any(state not in ("ok", "pruned", *ENDED_BADLY) for state in states):
        return None
    return next((state for state in states if state != "ok"), "ok")


def _value(objective: str, records: Sequence[RunRecord]) -> float:
    """Of a trial: mean val accuracy, or the seconds of all its runs."""
    if objective == "accuracy":
        return fmean(record.metrics["val"]["accuracy"] for record in records)
    return sum(record.wall_clock_s for record in records)
