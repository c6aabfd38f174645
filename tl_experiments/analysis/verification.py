"""Every number again, from the stored predictions: what a record says must be what its run predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tl_experiments.analysis.arms import Arm
from tl_experiments.analysis.images import Hits
from tl_experiments.analysis.runs import FinishedRun
from tl_experiments.errors import UserError
from tl_experiments.metrics.scores import PerClass, per_class, summary
from tl_experiments.metrics.stored import PREDICTIONS_FILE, Predictions, read_predictions
from tl_experiments.records import RECORD_FILE

TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What the predictions of the runs gave, small enough to keep for all of them.

    Args:
        hits: Job -> which test images it had right.
        per_class: Job -> its table by class on test.
        unverified: Jobs without predictions, in order.
    """

    hits: Mapping[str, Hits]
    per_class: Mapping[str, PerClass]
    unverified: tuple[str, ...]


def verify(runs: Sequence[FinishedRun]) -> Verified:
    """Compute each metric of each split of each run again.

    A run whose predictions are missing is listed: a record that was copied without them is no reason to refuse the
    comparison, but nobody can check it. Predictions that are there must be readable and agree.

    Args:
        runs: Finished runs whose metrics are finite.

    Raises:
        UserError: A metric differs by more than 1e-6, or cannot be computed, a split has not the images that the
            record says, or the predictions are damaged.
    """
    numbers: dict[str, int] = {}  # of images, over all runs
    hits: dict[str, Hits] = {}
    by_class: dict[str, PerClass] = {}
    unverified = []
    for run in runs:
        job = run.record.job_id
        if not (run.folder / PREDICTIONS_FILE).exists():
            unverified.append(job)
            continue
        predictions = read_predictions(run.folder)
        _check(run, predictions)
        test = predictions["test"]
        images = np.array([numbers.setdefault(item, len(numbers)) for item in test.items], dtype=np.int64)
        hits.setdefault(job, Hits(images, test.predicted == test.labels))
        by_class.setdefault(job, per_class(test))
    return Verified(hits=hits, per_class=by_class, unverified=tuple(dict.fromkeys(unverified)))


def class_tables(
    chosen: Mapping[Arm, Sequence[FinishedRun]], verified: Verified
) -> dict[Arm, tuple[tuple[str, ...], list[PerClass]]]:
    """Arm -> class names and a table by class of each run of its chosen trial; of arms with all predictions."""
    return {
        arm: (runs[0].record.classes, [verified.per_class[run.record.job_id] for run in runs])
        for arm, runs in chosen.items()
        if all(run.record.job_id in verified.per_class for run in runs)
    }


def _check(run: FinishedRun, predictions: Mapping[str, Predictions]) -> None:
    for split, rows in predictions.items():
        number, images = len(rows.items), len(set(rows.items))
        said = run.record.data.get("sizes", {}).get(
            split, number
        )  # where it does not stand there, as of old, any number
        if images != number:
            raise _damaged(run, f"{split} has {number} predictions of {images} images in {PREDICTIONS_FILE}")
        if number != said:
            raise _damaged(run, f"{split} has {said} images in {RECORD_FILE}, {number} in {PREDICTIONS_FILE}")
    for split, metrics in run.record.metrics.items():
        again = summary(predictions[split]) if split in predictions else {}
        for name, value in metrics.items():
            found = again.get(name)
            if found is None or not abs(value - found) <= TOLERANCE:  # NaN is no agreement
                says = "nothing" if found is None else f"{found:.9g}"
                raise _damaged(run, f"{split} {name} is {value:.9g} in {RECORD_FILE}, {says} by {PREDICTIONS_FILE}")


def _damaged(run: FinishedRun, what: str) -> UserError:
    return UserError(
        str(run.folder), what, "one of the two was changed or damaged: run the job again, or remove its folder"
    )
