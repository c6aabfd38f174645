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
from tl_experiments.records import RunRecord
from tl_experiments.sweeps.bookkeeping import finished_records, has_record
from tl_experiments.sweeps.jobs import Job, Trial, without_secrets
from tl_experiments.sweeps.ledger import ENDED_BADLY, Ledger
from tl_experiments.sweeps.pruning import STUDY_FILE, import_optuna, open_journal
from tl_experiments.sweeps.sweep import Outcome, preview, run_sweep
from tl_experiments.sweeps.tuning import Choose
from tl_experiments.tuning.dimensions import Suggester
from tl_experiments.tuning.front import front_lines
from tl_experiments.tuning.space import SearchedArm, Space
from tl_experiments.tuning.studies import Proposal, Search

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Round:
    """What one arm runs in a round: its proposals with their jobs."""

    search: Search
    proposals: tuple[tuple[Proposal, tuple[Job, ...]], ...]


class Tuning:
    """One command's search.

    Args:
        space: Of the command.
        folder: Of the sweep; the journal of all trials stands in it.
        command: As it was typed.
        choose: Takes one of an arm's settings, by val.
        storage: Of the trials.
    """

    def __init__(self, space: Space, folder: Path, command: str, choose: Choose, storage: BaseStorage) -> None:
        self._space, self._folder, self._command, self._choose = space, folder, command, choose
        self.tune = tune_of(space)
        self._given_up: dict[str, list[Job]] = {}  # by search, what failed
        self._searches = {
            arm.name: Search(storage, arm.name, self.tune, space.tuning_seed, arm.defaults, _settler(space, arm))
            for arm in space.arms
        }

    def run(self) -> Outcome:
        """All that is missing; a round of all arms is one sweep, so that its jobs share what they can."""
        trained = self._retry()
        for rounds in self._rounds():
            self._announce(rounds)
            outcome = run_sweep(_distinct(rounds), self._folder, self._command)
            trained += outcome.trained
            complete = self._tell(rounds)
            self._enter_budgets()
            if not complete:
                return replace(outcome, trained=trained)
        outcome = run_sweep(self._last_jobs(), self._folder, self._command)
        return replace(outcome, trained=trained + outcome.trained)

    def preview(self) -> str:
        """What the next sweep would run and cost, and what would follow."""
        seeds = len(self._space.repeats) > 1
        then = "then, of each arm, the setting that val chooses with the other seeds" if seeds else ""
        for rounds in self._rounds():
            jobs = _distinct(rounds)
            text = preview(jobs, self._folder)
            each = {
                self.tune.trials - len(one.search.ended) - len(one.proposals) for one in rounds
            }  # arms may have been added
            more = max(each)
            left = f"then {more} more trials of each of {len(rounds)} arms" if more > 0 else ""
            return "\n".join(line for line in (text, left, then) if line)
        return preview(self._last_jobs(), self._folder)

    def fronts(self) -> str:
        """Of each arm, the trials that none beats in both objectives; empty with one objective."""
        if len(self.tune.objectives) == 1:
            return ""
        return "\n".join(
            line
            for arm in self._space.arms
            for line in front_lines(arm, self._searches[arm.name], self.tune.objectives)
        )

    def _rounds(self) -> Iterator[list[_Round]]:
        """One at a time; what is proposed depends on what was told of the one before."""
        while True:
            rounds = []
            for arm in self._space.arms:
                search = self._searches[arm.name]
                if search.name in self._given_up:
                    continue
                proposals = tuple((one, self._jobs(arm, search, one)) for one in search.propose())
                rounds += [_Round(search, proposals)] if proposals else []
            if not rounds:
                return
            yield rounds

    def _jobs(self, arm: SearchedArm, search: Search, proposal: Proposal) -> tuple[Job, ...]:
        jobs = without_secrets(self._space.jobs(arm.overrides, proposal.setting, tuning=True))
        if self.tune.pruner != "none":
            jobs = [replace(job, trial=Trial(search.name, proposal.id)) for job in jobs]
        return tuple(jobs)

    def _announce(self, rounds: Sequence[_Round]) -> None:
        numbers = [proposal.number + 1 for one in rounds for proposal, _ in one.proposals]
        logger.info(
            "trials %d to %d of %d, of %d %s",
            min(numbers), max(numbers), self.tune.trials, len(rounds), "arm" if len(rounds) == 1 else "arms",
        )  # fmt: skip

    def _tell(self, rounds: Sequence[_Round]) -> bool:
        """Tell the searches what became of their trials; False where one has not ended.

        An arm of which a whole round failed, not diverged, has something else to be mended than its settings: its
        search stops there.
        """
        ledger, complete = Ledger.open(self._folder), True
        for one in rounds:
            states = [_state(jobs, ledger) for _, jobs in one.proposals]
            if all(state == "failed" for state in states):
                self._given_up[one.search.name] = [job for _, jobs in one.proposals for job in jobs]
                logger.info("no more trials of %s: all of the last round failed", one.search.name)
                continue
            for (proposal, jobs), state in zip(one.proposals, states, strict=True):
                if state is None:
                    complete = False
                    continue
                records = finished_records(jobs, self._folder) if state == "ok" else []
                one.search.tell(proposal, state, [_value(name, records) for name in self.tune.objectives if records])
        return complete

    def _retry(self) -> int:
        """Run failed trials again, where the command asks for it, before one is chosen; returns how many."""
        if not self._space.arms[0].example.config.retry_failed or not (self._folder / STUDY_FILE).exists():
            return 0
        ledger = Ledger.open(self._folder)
        failed = [job for job in self._tried() if job.id in ledger.jobs and ledger.jobs[job.id].state in ENDED_BADLY]
        return run_sweep(failed, self._folder, self._command).trained if failed else 0

    def _tried(self) -> list[Job]:
        """The jobs of all trials that have ended, each once."""
        jobs = [
            job
            for arm in self._space.arms
            for setting in self._settings(arm)
            for job in self._space.jobs(arm.overrides, setting, tuning=True)
        ]
        return without_secrets(list({job.id: job for job in jobs}.values()))

    def _settings(self, arm: SearchedArm) -> list[tuple[str, ...]]:
        search = self._searches[arm.name]
        return list(dict.fromkeys(search.setting(trial) for trial in search.ended))

    def _last_jobs(self) -> list[Job]:
        """All trials that were not pruned, and the other seeds of the setting that val chose for each arm."""
        ledger = Ledger.open(self._folder)
        tried = [*self._tried(), *(job for failed in self._given_up.values() for job in failed)]
        jobs = [
            replace(job, config=replace(job.config, retry_failed=False))  # that has been done
            for job in tried
            if job.id not in ledger.jobs or ledger.jobs[job.id].state != "pruned"
        ]
        for arm in self._space.arms:
            found: dict[str, list[RunRecord]] = {}
            settings = {" ".join(setting): setting for setting in self._settings(arm)}
            for key, setting in settings.items():
                tried = self._space.jobs(arm.overrides, setting, tuning=True)
                if all(has_record(self._folder, job) for job in tried):
                    found[key] = finished_records(tried, self._folder)
            if found:
                chosen = settings[self._choose(found)]
                jobs += without_secrets(self._space.jobs(arm.overrides, chosen, tuning=False))
        return jobs

    def _enter_budgets(self) -> None:
        """What each search has spent, in ``sweep.json``: trials that left no record count as well."""
        ledger = Ledger.open(self._folder)
        budgets = {one["search"]: one for one in ledger.plan.get("tuning", [])}
        for arm in self._space.arms:
            search = self._searches[arm.name]
            settings = self._settings(arm)
            jobs = [job.id for one in settings for job in self._space.jobs(arm.overrides, one, tuning=True)]
            states = Counter(trial.user_attrs["state"] for trial in search.ended)
            budgets[arm.name] = {"search": arm.name, "states": dict(states), "jobs": jobs}
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
    return Tuning(space, folder, command, choose, open_journal(folder))


def in_memory(space: Space, folder: Path, command: str, choose: Choose) -> Tuning:
    """The same with a copy of the journal, to look ahead."""
    optuna = import_optuna()
    storage = optuna.storages.InMemoryStorage()
    if (folder / STUDY_FILE).exists():
        journal = open_journal(folder)
        for name in optuna.get_all_study_names(journal):
            optuna.copy_study(from_study_name=name, from_storage=journal, to_storage=storage)
    return Tuning(space, folder, command, choose, storage)


def _settler(space: Space, arm: SearchedArm) -> Callable[[Suggester], tuple[str, ...]]:
    return lambda trial: space.settle(arm, trial)


def _distinct(rounds: Sequence[_Round]) -> list[Job]:
    """Equal proposals run once."""
    jobs = [job for one in rounds for _, jobs in one.proposals for job in jobs]
    return list({job.id: job for job in reversed(jobs)}.values())[::-1]


def _state(jobs: Sequence[Job], ledger: Ledger) -> str | None:
    """Of a trial: ``ok`` where all of its jobs are, else the first that is not; None where one has not ended."""
    states = [ledger.jobs[job.id].state for job in jobs]
    if any(state not in ("ok", "pruned", *ENDED_BADLY) for state in states):
        return None
    return next((state for state in states if state != "ok"), "ok")


def _value(name: str, records: Sequence[RunRecord]) -> float:
    """Of a trial: mean val accuracy, or the seconds of all its runs."""
    if name == "accuracy":
        return fmean(record.metrics["val"]["accuracy"] for record in records)
    return sum(record.wall_clock_s for record in records)
