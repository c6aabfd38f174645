"""What is compared with what: arms, the trials of an arm, and the choice of one trial on val.

Nothing here reads a test metric; a choice that did would make the reported number too good.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from tl_experiments.records import NOT_IN_THE_RESULT, RunRecord

CONTROL = "from_scratch"
MIN_SEEDS = 3  # below this many shared seeds nothing is called better

# Beside what changes no result, what varies by design: seed, label subset and split over the runs of a trial; where
# data and weights are, for which fingerprint and hash stand on every machine; the further test sets, which no run
# learns from.
NOT_A_TRIAL = NOT_IN_THE_RESULT | {
    *("seed", "dataset.subset_seed", "dataset.fold", "dataset.split_seed"),
    *("dataset.root", "dataset.path", "dataset.repo", "dataset.tests", "backbone.weights"),
}


class Pair(NamedTuple):
    """What two runs of different arms must share to be compared with each other.

    Args:
        seed: Of head and data order.
        fold: Which fold is test; 0 without folds.
        split_seed: Of the splits that are made, by folds or where the data has none of its own.
        subset_seed: Of the label subset; the seed where it follows that, or where all labels are used.
    """

    seed: int
    fold: int
    split_seed: int
    subset_seed: int

    @property
    def split(self) -> tuple[int, int]:
        """What decides which images are test, and so over which images pairs overlap."""
        return self.split_seed, self.fold


def pair_of(record: RunRecord) -> Pair:
    """The pair that a run belongs to; records from before there were folds have fold 0."""
    dataset = record.config["dataset"]
    own = dataset.get("subset_seed")
    takes_part = dataset.get("shots") is not None or dataset.get("label_fraction") is not None
    subset = record.seed if own is None or not takes_part else int(own)
    return Pair(record.seed, int(dataset.get("fold", 0)), int(dataset.get("split_seed", 0)), subset)


@dataclass(frozen=True, order=True)
class Arm:
    """One row of the comparison: the four short texts of ``RunRecord.arm``."""

    dataset: str
    backbone: str
    head: str
    freeze_strategy: str

    @property
    def starts_from_weights(self) -> bool:
        """False for the control, whose label cannot say from which weights it does not start."""
        return self.freeze_strategy.partition("(")[0] != CONTROL


def differs(arms: Sequence[Arm], label: str) -> bool:
    """Whether ``label`` tells arms apart; ``resnet18`` from scratch is the control of ``resnet18 (mine)``, no other."""
    return len({getattr(arm, label) for arm in arms if arm.starts_from_weights} or {getattr(arms[0], label)}) > 1


@dataclass(frozen=True)
class SearchBudget:
    """What ``tl tune`` spent on one arm.

    Args:
        jobs: Ids of its trials' runs.
        states: State of the ledger -> trials that ended so; one that was proposed twice counts twice.
        lost_s: Seconds of its runs that left no record.
        intervals: Smallest and largest value of the numbers that were searched, by key.
    """

    jobs: frozenset[str]
    states: Mapping[str, int]
    lost_s: float
    intervals: Mapping[str, tuple[float, float]]

    @property
    def trials(self) -> int:
        """Settings that were tried, those that were pruned, diverged or failed included."""
        return sum(self.states.values())


@dataclass(frozen=True)
class ArmRuns:
    """An arm with the trial that val chose.

    Args:
        arm: The labels.
        trials: Trial key -> its runs, in order of their pairs.
        chosen: Key of the chosen trial.
        searches: In which trials of the arm were proposed.
    """

    arm: Arm
    trials: Mapping[str, tuple[RunRecord, ...]]
    chosen: str
    searches: tuple[SearchBudget, ...] = ()

    @property
    def n_trials(self) -> int:
        """Settings that had a chance to be chosen; of a search those that left no record, too."""
        searched = frozenset[str]().union(*(search.jobs for search in self.searches))
        others = sum(all(run.job_id not in searched for run in runs) for runs in self.trials.values())
        return others + sum(search.trials for search in self.searches)

    @property
    def runs(self) -> tuple[RunRecord, ...]:
        """Runs of the chosen trial, in order of seed, fold and split."""
        return self.trials[self.chosen]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the chosen trial, each once."""
        return tuple(dict.fromkeys(run.seed for run in self.runs))

    @property
    def splits(self) -> tuple[tuple[int, int], ...]:
        """Splits of the chosen trial, each once; more than one with folds or with several split seeds."""
        return tuple(dict.fromkeys(pair_of(run).split for run in self.runs))

    @property
    def transfers(self) -> bool:
        """Whether the arm starts from weights that were learnt elsewhere."""
        return not self.is_control and self.runs[0].weights.get("source") != "random"

    @property
    def is_control(self) -> bool:
        """Whether the arm is ``from_scratch``, against which transfer is measured."""
        return bool(self.runs[0].config["freeze_strategy"]["name"] == CONTROL)

    @property
    def pairing(self) -> tuple[str, str, str]:
        """Dataset, name of the architecture and head: arms that share it differ in weights and freezing only."""
        return self.arm.dataset, str(self.runs[0].config["backbone"]["name"]), self.arm.head

    def by_pair(self, split: str, metric: str) -> dict[Pair, float]:
        """Pair -> metric, of the chosen trial."""
        return {pair_of(run): run.metrics[split][metric] for run in self.runs}

    def mean(self, split: str, metric: str) -> float:
        """Mean over the runs of the chosen trial."""
        return fmean(self.by_pair(split, metric).values())


def flat_settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Dotted key -> value as JSON, of what changes the result, save seed, subset and split."""
    settings: dict[str, str] = {}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for key, value in node.items():
            path = f"{prefix}{key}"
            if path in NOT_A_TRIAL:
                continue
            if isinstance(value, Mapping):
                walk(value, f"{path}.")
            else:
                # 3 and 3.0 are one setting: which of them is stored depends on how it was typed.
                whole = isinstance(value, float) and value.is_integer()
                settings[path] = json.dumps(int(value) if whole else value)

    walk(config, "")
    return settings


def trial_key(record: RunRecord) -> str:
    """Canonical JSON of the settings that make a trial: runs of an arm with equal keys differ in their pair."""
    return json.dumps(flat_settings(record.config), sort_keys=True)


def val_rank(runs: Iterable[RunRecord]) -> tuple[float, float]:
    """Sort key, best first: mean val accuracy, then mean val NLL; rounded, so that summing order breaks no tie."""
    val = [run.metrics["val"] for run in runs]
    return -round(fmean(m["accuracy"] for m in val), 12), round(fmean(m["nll"] for m in val), 12)


def choose_trial(trials: Mapping[str, Sequence[RunRecord]]) -> str:
    """Key of the trial with the best mean val accuracy among those that ran the most pairs.

    A trial that lost a seed is not chosen over a complete one: its mean is over easier or fewer runs. Where trials were
    tuned on one seed, the one that went on to all of them is the one that was chosen.
    Ties go to the lower mean val NLL, then to the smaller key.
    """
    most = max(len(runs) for runs in trials.values())
    complete = [key for key, runs in trials.items() if len(runs) == most]
    return min(complete, key=lambda key: (*val_rank(trials[key]), key))


def group_arms(records: Iterable[RunRecord], searches: Iterable[SearchBudget] = ()) -> tuple[ArmRuns, ...]:
    """Group runs into arms and choose a trial for each, ordered by dataset and within it by val, best first.

    Arms with fewer than 3 seeds stand behind those that have them. Of two runs of one arm, trial and pair the first
    counts.

    Args:
        records: Finished runs.
        searches: Budgets of ``tl tune``; each belongs to the arm that has its runs.
    """
    searches = tuple(searches)
    grouped: dict[Arm, dict[str, dict[Pair, RunRecord]]] = defaultdict(lambda: defaultdict(dict))
    runs_of = list(records)
    dataset = _told_apart([(run.arm["dataset"], pair_of(run).split, run.data["fingerprint"]) for run in runs_of])
    backbone = _told_apart([(run.arm["backbone"], None, run.weights.get("sha256")) for run in runs_of])
    for number, record in enumerate(runs_of):
        arm = Arm(dataset[number], backbone[number], record.arm["head"], record.arm["freeze_strategy"])
        grouped[arm][trial_key(record)].setdefault(pair_of(record), record)
    arms = []
    for arm, by_key in grouped.items():
        trials = {key: tuple(runs[pair] for pair in sorted(runs)) for key, runs in sorted(by_key.items())}
        ids = {run.job_id for runs in trials.values() for run in runs}
        own = tuple(search for search in searches if search.jobs & ids)
        arms.append(ArmRuns(arm, trials, choose_trial(trials), own))
    return tuple(sorted(arms, key=_rank))


def control_of(arm: ArmRuns, arms: Sequence[ArmRuns]) -> ArmRuns | None:
    """The ``from_scratch`` arm of the same dataset, architecture and head; of several, the best on val.

    None for an arm that starts from random weights itself: it transfers nothing, so there is no gain to measure.
    """
    if not arm.transfers:
        return None
    controls = [other for other in arms if other.is_control and other.pairing == arm.pairing]
    return min(controls, key=_rank, default=None)


def _rank(runs: ArmRuns) -> tuple[str, bool, float, float, Arm]:
    return runs.arm.dataset, len(runs.seeds) < MIN_SEEDS, *val_rank(runs.runs), runs.arm


def _told_apart(labels: Sequence[tuple[str, object, str | None]]) -> list[str]:
    """Labels; one that stands for several contents, such as a folder of replaced images, gets the start of a hash.

    Args:
        labels: Label, under which circumstances contents must be equal, content. The fingerprint of a dataset covers
            its splits, so it may differ between two folds, but not within one.
    """
    contents: dict[tuple[str, object], set[str | None]] = defaultdict(set)
    for label, where, content in labels:
        contents[label, where].add(content)
    several = {label for (label, _), found in contents.items() if len(found - {None}) > 1}
    return [f"{label} #{content[:6]}" if content and label in several else label for label, _, content in labels]
