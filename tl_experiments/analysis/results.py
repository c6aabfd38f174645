"""A comparison as data: one row an arm, a verdict a dataset, and everything a reader must be warned of."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tl_experiments.analysis.arms import Arm
from tl_experiments.analysis.findings import Contrast, Overview, read_contrast, read_overview
from tl_experiments.analysis.statistics import Estimate

COMPARISON_VERSION = 4  # raised whenever a stored comparison would come out otherwise


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm, with the trial that val chose.

    Args:
        arm: The labels.
        is_control: Whether this is the ``from_scratch`` arm.
        recommended: Whether this is the arm that the verdict recommends.
        trials: Trials of which a run finished; one was chosen.
        runs: Finished runs of all trials.
        settings: The chosen trial's settings, those only that differ between trials.
        seeds: Seeds of the chosen trial.
        splits: Splits of the chosen trial: 1, or the number of folds and split seeds.
        max_epochs: Epochs of the chosen trial.
        all_trials_epochs: Epochs of all runs of all trials together, as configured.
        val_accuracy: Mean over seeds, in [0, 1]; val chose the trial and the epoch, so it flatters.
        test_accuracy: Over seeds, or over splits where there are several, in [0, 1].
        test_macro_f1: Mean over seeds, in [0, 1].
        test_nll: Mean over seeds, in nats.
        metrics: Split (``val``, ``test``, ``test/<name>`` of further test sets) -> metric -> its estimate, of the
            metrics that every run of the chosen trial has.
        trained_parameters: Elements that trained in any phase.
        total_parameters: Elements of the model.
        wall_clock_s: Mean seconds a run of the chosen trial.
        all_trials_s: Seconds of all runs of all trials together: what the arm's result cost.
        pretraining_s: Seconds of own pretraining behind the weights, each set of weights counted once.
        peak_memory_bytes: The largest over the chosen trial's runs.
        labels_spent: Labels of train and val, the most over seeds.
        transfer_gain: Test accuracy less that of ``from_scratch``, paired by seed; null for the control itself, and
            where no control of the same dataset, architecture and head shares a seed.
        transfer_gain_p: Of the primary test of the gain, corrected by Holm over the gains of the dataset; null where
            there is none, and below 3 seeds.
        p_value: Of the primary test of the recommended arm against this one, corrected; null where not tested.
        negative_transfer: Whether the gain's interval over 3 seeds or more lies wholly below 0 and ``transfer_gain_p``
            is below 0.05, where the verdict tests the same two arms its p as well.
        not_dominated: Costs (``seconds``, ``trained``, ``memory``) at which no other arm of the dataset is as accurate
            on test and as cheap, and better in one of the two; ``overall`` where that holds with all costs at once.
        unequal: Parts of the budget (``trials``, ``epochs``, ``seeds``, ``splits``) in which the arm had more or less
            than most arms of the dataset.
    """

    arm: Arm
    is_control: bool
    recommended: bool
    trials: int
    runs: int
    settings: Mapping[str, str]
    seeds: tuple[int, ...]
    splits: int
    max_epochs: int
    all_trials_epochs: int
    val_accuracy: float
    test_accuracy: Estimate
    test_macro_f1: float
    test_nll: float
    metrics: Mapping[str, Mapping[str, Estimate]]
    trained_parameters: int
    total_parameters: int
    wall_clock_s: float
    all_trials_s: float
    pretraining_s: float
    peak_memory_bytes: int
    labels_spent: int
    transfer_gain: Estimate | None
    transfer_gain_p: float | None
    p_value: float | None
    negative_transfer: bool
    not_dominated: tuple[str, ...]
    unequal: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LostJob:
    """A job that is in no mean.

    Args:
        job_id: Hash of its config.
        state: ``failed``, ``diverged``, ``oom``, ``interrupted``, ``skipped``, ``pending``, ``running``, or
            ``unreadable``.
        cause: One line.
        overrides: What the command line said for it, shown instead of the hash.
        log: Path of its log.
        seconds: How long it ran.
    """

    job_id: str
    state: str
    cause: str
    overrides: tuple[str, ...] = ()
    log: str | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict on one dataset: the arm that val chose, and the sentence."""

    dataset: str
    recommended: Arm
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a sweep found.

    Args:
        rows: By dataset, best on val first.
        verdicts: One a dataset.
        warnings: What weakens the comparison: unequal budgets, controls that were still learning, lost jobs.
        notes: Of the records, each once.
        lost_jobs: Jobs that are in no mean, with their causes.
        contrasts: Every two arms of each dataset that share a run, in the order of the table.
        overview: Over all datasets; null where fewer than 2 of them share 2 arms.
        unverified: Runs whose numbers could not be computed again, since their predictions are missing.
        key: Hash of the records it was made from; empty where it was not made from files.
    """

    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    lost_jobs: tuple[LostJob, ...]
    contrasts: tuple[Contrast, ...]
    overview: Overview | None
    unverified: tuple[str, ...] = ()
    key: str = ""

    def to_json(self) -> str:
        """JSON with full precision and every name exact; ASCII, so that no name can break the file.

        Its last entry, ``sha256``, is that of the others: a number that was changed by hand is not believed.
        """
        content = dataclasses.asdict(self)
        return json.dumps({**content, "sha256": _digest(content)}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: The text is something else, or was changed.
        """
        content = json.loads(text)
        if content.pop("sha256") != _digest(content):
            raise ValueError("comparison: changed since it was written")
        return cls(
            rows=tuple(_row(row) for row in content["rows"]),
            verdicts=tuple(Verdict(**{**v, "recommended": Arm(**v["recommended"])}) for v in content["verdicts"]),
            warnings=tuple(content["warnings"]),
            notes=tuple(content["notes"]),
            lost_jobs=tuple(LostJob(**{**job, "overrides": tuple(job["overrides"])}) for job in content["lost_jobs"]),
            contrasts=tuple(read_contrast(contrast) for contrast in content["contrasts"]),
            overview=None if content["overview"] is None else read_overview(content["overview"]),
            unverified=tuple(content["unverified"]),
            key=content["key"],
        )


def _digest(content: Mapping[str, Any]) -> str:
    """sha256 of plain values, whatever the white space and order of the file that they stand in."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _row(content: Mapping[str, Any]) -> Row:
    gain = content["transfer_gain"]
    metrics = {
        split: {name: Estimate(**estimate) for name, estimate in of_split.items()}
        for split, of_split in content["metrics"].items()
    }
    return Row(
        **{
            **content,
            "arm": Arm(**content["arm"]),
            "seeds": tuple(content["seeds"]),
            "test_accuracy": Estimate(**content["test_accuracy"]),
            "metrics": metrics,
            "transfer_gain": None if gain is None else Estimate(**gain),
            "not_dominated": tuple(content["not_dominated"]),
            "unequal": tuple(content["unequal"]),
        }
    )
